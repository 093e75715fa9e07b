"""Sources: data as people have them, described by a card file such as `mine.toml`."""
