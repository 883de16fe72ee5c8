"""What the compiler made of a kernel: its loops, counted, and what they take of a GPU that need not be there."""
