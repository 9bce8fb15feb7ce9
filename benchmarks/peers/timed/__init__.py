"""What `speed.py` is made of: problem, one side for each library, its process, machine, floor, table."""
