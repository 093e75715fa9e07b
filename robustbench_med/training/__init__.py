"""Train the shipped victims, plainly or with a training defense."""
