"""Operations on signs become operations on packed bits."""
