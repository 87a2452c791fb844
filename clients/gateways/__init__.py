"""Gateways: processes that speak to the world by HTTP and to the broker as clients do."""
