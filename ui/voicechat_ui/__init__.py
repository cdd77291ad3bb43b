"""The user interface: the `voicechat` command and the page. It may import all other packages."""
