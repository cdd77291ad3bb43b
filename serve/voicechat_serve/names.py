"""The names and routes of our applications on Serve. The Serve of a joined Ray may have other applications, too."""

API, FRONT = "api", "front"

APPLICATIONS = {API: "/v1", FRONT: "/"}
