"""What a jitted call repeats: training steps, validation, sampling."""
