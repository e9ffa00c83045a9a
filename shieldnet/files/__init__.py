"""Reading of files: arrays, tables, images and models. Nothing is unpickled."""
