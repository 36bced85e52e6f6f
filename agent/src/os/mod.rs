//! What the agent asks of the operating system: links, addresses, routes, and news of their changes.
