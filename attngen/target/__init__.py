"""What is known of each GPU (`facts`), and what the real compiler makes of a kernel for it (`compile`)."""
