"""Export: the adversarial images of a record as files, which are read back and judged again."""
