"""Statistics, tables, plots and the HTML report of runs, made from their records alone."""
