"""The page on which people compare and rate responses: tasks, a store that survives a kill, and export as
HelpSteer2."""
