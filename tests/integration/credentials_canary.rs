//! Secrets in every failure, looked for in everything that is printed, logged and served.
