"""What other tools load by name, where they have a place for plugins. Each module is for one tool, and imports it."""
