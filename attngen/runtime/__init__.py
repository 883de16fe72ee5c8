"""Running what was generated: importing a module, and executing kernels on a CPU."""
