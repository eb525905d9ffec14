"""From a file to clean, divided examples: read, audit, split. No torch in here."""
