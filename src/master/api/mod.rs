//! The API: HTTP as it comes in and goes out.
//!
//! | module | owns |
//! |---|---|
//! | [`front`] | connections, TLS and limits, before tiny_http |
//! | [`backend`] | the server behind the front: requests that have passed, answers |
//! | [`router`] | which request is for whom, and who may ask |
//! | [`instances`], [`events`], [`info`], [`tcping`] | the endpoints |
//! | [`reply`], [`headers`] | answers |
//! | [`openapi`] | the description of the API for programs |
//! | [`pages`] | the description of the API for people |

pub mod backend;
pub mod events;
pub mod front;
pub mod headers;
pub mod info;
pub mod instances;
pub mod openapi;
pub mod pages;
pub mod reply;
pub mod router;
pub mod tcping;
