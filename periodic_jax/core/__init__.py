"""What everything else rests on and knows nothing of training: the grid, errors, limits, files, formatting."""
