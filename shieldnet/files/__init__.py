"""What is read from a user's files: arrays, tables, pictures, models. Nothing is unpickled."""
