"""What is learned, held against ground truth that people marked: `pgtg benchmark`."""
