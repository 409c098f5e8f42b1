"""Run directories -> what they show."""
