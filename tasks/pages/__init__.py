"""What people look at: cards, HTML pages, the Prefect UI."""
