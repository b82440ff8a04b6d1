"""Operations on scalar nodes."""
