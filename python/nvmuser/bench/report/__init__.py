"""Results: their schema, what is read out of them, and pages, plots and tables."""
