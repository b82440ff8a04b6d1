"""What is known of a run beside its weights and settings."""
