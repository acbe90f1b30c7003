"""From a file that states an experiment to a directory with its outcome."""
