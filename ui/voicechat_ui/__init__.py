"""What people touch: the `voicechat` command and the page. Knows everything below."""
