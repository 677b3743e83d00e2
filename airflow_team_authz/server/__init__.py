"""The bundle server: takes teams' packages, checks them, builds the bundles of all, and hands them out.

Knows neither doors nor Airflow.
"""
