//! Header fields that every answer carries.

/// What lets pages of other origins use the API from a browser.
pub const CORS_FIELDS: [(&str, &str); 3] = [
    ("Access-Control-Allow-Origin", "*"),
    (
        "Access-Control-Allow-Methods",
        "GET, PATCH, POST, PUT, DELETE, OPTIONS",
    ),
    (
        "Access-Control-Allow-Headers",
        "Content-Type, Authorization, X-API-Key, Cache-Control",
    ),
];
