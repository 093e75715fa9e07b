"""Studies: published attacks on medical images, as published and as this bench runs them.

A study is a TOML file in this folder: its claim, the published numbers with their sources, the
measurements `as_published` (the paper's own protocol, faults included: `protocols.py`,
`readings.py`) beside those of this bench (`corrected`: ordinary cases), and the faults in words.
"""
