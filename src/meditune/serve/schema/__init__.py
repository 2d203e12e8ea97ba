"""Requests and responses, as OpenAPI describes them."""
