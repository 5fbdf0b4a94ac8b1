"""Tillpost tracker: typed events for the Synerise API."""
