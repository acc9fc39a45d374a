//! Reading: objects, parts of them, what is known about them, and which there are.

use std::ops::Range;

use aws_sdk_s3::primitives::{ByteStream, DateTime};
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;

use super::S3;
use super::failure::{Class, Failure};
use super::put::PUT_ID;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::Key;
use crate::storage::{Entry, Object, Operation, Version};

/// More than any store keeps in one object (AWS: 48.8 TiB).
const OBJECT_BYTES_MAX: u64 = 1 << 50;

/// What is known about an object without reading it.
pub(super) struct Found {
    pub(super) entry: Entry,
    pub(super) version: Option<Version>,
    /// The id of the write that made it, if that write was ours.
    pub(super) put_id: Option<String>,
}

impl S3 {
    pub(super) async fn look(&self, key: &Key) -> Result<Option<Found>, Failure> {
        let looked = self.retrying(0, |client| {
            let request = client.head_object().bucket(&self.settings.bucket).key(self.name(key));
            async { request.send().await.map_err(Failure::of_head) }
        });
        match looked.await {
            Ok(head) => Ok(Some(Found {
                entry: Entry {
                    path: key.path(),
                    bytes: unsigned(head.content_length),
                    modified_at: timestamp(head.last_modified),
                },
                version: head.e_tag.map(Version),
                put_id: head.metadata.and_then(|mut metadata| metadata.remove(PUT_ID)),
            })),
            Err(failure) if failure.class == Class::Missing => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    pub(super) async fn read_whole(&self, key: &Key, bytes_max: usize) -> Result<Object> {
        let read = self.retrying(bytes_max as u64, |client| {
            let request = client.get_object().bucket(&self.settings.bucket).key(self.name(key));
            async move {
                let answer = request.send().await.map_err(Failure::of)?;
                if unsigned(answer.content_length) > bytes_max as u64 {
                    return Ok(None);
                }
                let version = answer.e_tag.map(Version);
                Ok(collect(answer.body, bytes_max).await?.map(|bytes| (bytes, version)))
            }
        });
        match read.await {
            Ok(Some((bytes, Some(version)))) => Ok(Object { bytes, version }),
            Ok(Some((_, None))) => Err(nameless(key)),
            Ok(None) => {
                let message = format!("the object has more than {bytes_max} bytes: key=`{key}`");
                Err(Error::new(ErrorKind::Limit, message))
            }
            Err(failure) => Err(self.explain(failure, Operation::Read, key)),
        }
    }

    pub(super) async fn read_part(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let explain = |failure| self.explain(failure, Operation::ReadRange, key);
        // No range header can say "nothing", and not every store can read one that says too much.
        if range.is_empty() || range.end > OBJECT_BYTES_MAX {
            let found = self.look(key).await.map_err(explain)?;
            return match found {
                Some(found) if range.is_empty() && found.entry.bytes >= range.end => Ok(Bytes::new()),
                Some(_) => Err(explain(Failure::new(Class::OutOfRange, "seen without reading"))),
                None => Err(explain(Failure::new(Class::Missing, "seen without reading"))),
            };
        }
        let wanted = range.end - range.start;
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        let answered = format!("bytes {}-{}/", range.start, range.end - 1);
        let read = self.retrying(wanted, |client| {
            let request =
                client.get_object().bucket(&self.settings.bucket).key(self.name(key)).range(header.clone());
            let answered = answered.clone();
            async move {
                let answer = request.send().await.map_err(Failure::of)?;
                // A store that ignores ranges sends the whole, which may happen to be as long.
                let is_that_range = match &answer.content_range {
                    Some(range) => range.starts_with(&answered),
                    None => answered.starts_with("bytes 0-"),
                };
                if unsigned(answer.content_length) != wanted || !is_that_range {
                    let answer = answer.content_range.unwrap_or_default();
                    let text = format!("asked for `{answered}`, answered `{}`", answer.escape_debug());
                    return Err(Failure::new(Class::OutOfRange, text));
                }
                let limit = usize::try_from(wanted).unwrap_or(usize::MAX);
                let bytes = collect(answer.body, limit).await?.unwrap_or_default();
                match bytes.len() as u64 == wanted {
                    true => Ok(bytes),
                    false => {
                        Err(Failure::new(Class::Transient, "the answer has another length than it said"))
                    }
                }
            }
        });
        read.await.map_err(explain)
    }

    pub(super) async fn list_all(&self, prefix: &str) -> Result<Vec<Entry>> {
        let explain = |failure: Failure| {
            failure.error(Operation::List, &self.settings.bucket, &format!("prefix=`{prefix}`"))
        };
        let mut entries = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let page = self.retrying(0, |client| {
                let request = client
                    .list_objects_v2()
                    .bucket(&self.settings.bucket)
                    .prefix(format!("{}{prefix}", self.prefix))
                    .set_continuation_token(token.clone());
                async { request.send().await.map_err(Failure::of) }
            });
            let page = page.await.map_err(explain)?;
            entries.extend(page.contents.unwrap_or_default().into_iter().filter_map(|object| {
                let path = object.key?.strip_prefix(&self.prefix)?.to_owned();
                let (bytes, modified_at) = (unsigned(object.size), timestamp(object.last_modified));
                path.starts_with(prefix).then_some(Entry { path, bytes, modified_at })
            }));
            match page.next_continuation_token {
                None => break,
                // A store that sends us round in circles would fill the memory.
                next if next == token => {
                    return Err(explain(Failure::new(Class::Refused, "the same page came twice")));
                }
                next => token = next,
            }
        }
        // S3 lists in this order already, some of its relatives do not.
        entries.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(entries)
    }
}

/// The whole body, or `None` as soon as it has more than `bytes_max`.
async fn collect(mut body: ByteStream, bytes_max: usize) -> Result<Option<Bytes>, Failure> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| Failure::body(&error))?;
        if bytes.len() + chunk.len() > bytes_max {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes.freeze()))
}

/// Without the name of its state an object can be neither compared nor swapped.
pub(super) fn nameless(key: &Key) -> Error {
    let message = format!("storage names no state (ETag) of what it keeps: key=`{key}`");
    Error::new(ErrorKind::Unavailable, message)
}

/// A length as the protocol carries it; a negative one is nonsense and as good as none.
fn unsigned(length: Option<i64>) -> u64 {
    length.and_then(|length| u64::try_from(length).ok()).unwrap_or(0)
}

pub(super) fn timestamp(time: Option<DateTime>) -> Timestamp {
    time.and_then(|time| Timestamp::from_nanosecond(time.as_nanos()).ok()).unwrap_or(Timestamp::MIN)
}
