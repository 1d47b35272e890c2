"""Where texts, rankings and generations are read, and generated worlds."""
