"""What a model's output is, and whether its rows are answered one by one."""
