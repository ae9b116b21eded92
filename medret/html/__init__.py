"""Self-contained HTML: pages that fetch nothing and run no script, from templates that escape every text."""
