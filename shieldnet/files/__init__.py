"""What is read from a user's files: arrays, tables, images, models. Nothing is unpickled."""
