//! Writing a large object in parts while it is still being made.

use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;

use super::S3;
use super::failure::{Class, Failure};
use super::put::{Condition, PUT_ID, new_put_id};
use super::read::timestamp;
use crate::crash::{self, Point};
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::Key;
use crate::storage::{Operation, Parts};

/// What S3 allows in one object.
const PARTS_MAX: usize = 10_000;

impl S3 {
    /// Uploads an object of more than one part: complete and new, or nothing.
    ///
    /// At most `part_concurrency` parts are held, and the one the maker is making.
    pub(super) async fn upload(&self, key: &Key, first: Bytes, second: Bytes, rest: Parts) -> Result<()> {
        let put_id = new_put_id()?;
        let upload = self.begin(key, &put_id).await?;
        let parts = stream::iter([Ok(first), Ok(second)]).chain(rest);
        let outcome = async {
            let parts = self.send_all(key, &upload.id, parts.boxed()).await?;
            crash::at(Point::S3PartsSent);
            self.complete(key, &upload.id, &put_id, parts).await
        };
        match outcome.await {
            Ok(()) => upload.finished(),
            Err(error) => {
                upload.abort().await;
                crash::at(Point::S3UploadAborted);
                return Err(error);
            }
        }
        Ok(())
    }

    pub(super) async fn begin(&self, key: &Key, put_id: &str) -> Result<Upload> {
        let begun = self.retrying(0, |client| {
            let request = client
                .create_multipart_upload()
                .bucket(&self.settings.bucket)
                .key(self.name(key))
                .metadata(PUT_ID, put_id);
            async {
                match request.send().await {
                    Ok(begun) => Ok(begun.upload_id),
                    Err(error) => match error.raw_response().and_then(misnamed_upload_id) {
                        Some(id) => Ok(Some(id)),
                        None => Err(Failure::of(error)),
                    },
                }
            }
        });
        let id = begun.await.map_err(|failure| self.explain(failure, Operation::Create, key))?;
        let id = id.ok_or_else(|| {
            let failure = Failure::new(Class::Refused, "the store began an upload without an id");
            self.explain(failure, Operation::Create, key)
        })?;
        crash::at(Point::S3UploadBegun);
        let (bucket, name) = (self.settings.bucket.clone(), self.name(key));
        Ok(Upload { client: self.client.clone(), bucket, name, id, unfinished: true })
    }

    async fn send_all(&self, key: &Key, upload_id: &str, parts: Parts) -> Result<Vec<CompletedPart>> {
        let mut sent: Vec<CompletedPart> = parts
            .enumerate()
            .map(|(index, part)| match part {
                Ok(_) if index >= PARTS_MAX => {
                    let message = format!("an object has at most {PARTS_MAX} parts: key=`{key}`");
                    Err(Error::new(ErrorKind::Limit, message))
                }
                Ok(part) => Ok(self.send(key, upload_id, index as i32 + 1, part)),
                Err(error) => Err(error),
            })
            .try_buffer_unordered(self.settings.part_concurrency)
            .try_collect()
            .await?;
        sent.sort_by_key(|part| part.part_number);
        Ok(sent)
    }

    async fn send(&self, key: &Key, upload_id: &str, number: i32, part: Bytes) -> Result<CompletedPart> {
        let sent = self.retrying(part.len() as u64, |client| {
            let request = client
                .upload_part()
                .bucket(&self.settings.bucket)
                .key(self.name(key))
                .upload_id(upload_id)
                .part_number(number)
                .body(part.clone().into());
            async { request.send().await.map_err(Failure::of) }
        });
        let sent = sent.await.map_err(|failure| self.explain(failure, Operation::Create, key))?;
        crash::at(Point::S3PartSent);
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(sent.e_tag)
            .set_checksum_crc32(sent.checksum_crc32)
            .build())
    }

    async fn complete(
        &self,
        key: &Key,
        upload_id: &str,
        put_id: &str,
        parts: Vec<CompletedPart>,
    ) -> Result<()> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let mut outcome = self.try_complete(key, upload_id, &parts).await;
        if let Err(failure) = &outcome
            && failure.class == Class::Unsupported
            && self.honours(&Condition::Absent)
        {
            self.note_unsupported(&Condition::Absent);
            outcome = self.try_complete(key, upload_id, &parts).await;
        }
        match outcome {
            Ok(()) => Ok(()),
            // An upload that cannot be completed twice answers a repeated request with almost
            // anything; the object alone knows.
            Err(failure) => self.settle(key, Operation::Create, put_id, failure).await.map(drop),
        }
    }

    async fn try_complete(
        &self,
        key: &Key,
        upload_id: &str,
        parts: &CompletedMultipartUpload,
    ) -> Result<(), Failure> {
        let (if_none_match, _) = self.headers(key, &Condition::Absent).await?;
        let completed = self.retrying(0, |client| {
            let request = client
                .complete_multipart_upload()
                .bucket(&self.settings.bucket)
                .key(self.name(key))
                .upload_id(upload_id)
                .set_if_none_match(if_none_match.clone())
                .multipart_upload(parts.clone());
            async { request.send().await.map_err(Failure::of) }
        });
        completed.await.map(drop)?;
        crash::at(Point::S3UploadCompleted);
        Ok(())
    }

    /// Ends the uploads that other processes of ours began before `older_than`.
    pub(super) async fn sweep(&self, older_than: Timestamp) -> Result<u64> {
        let stale = match self.stale_uploads(older_than).await {
            // The third is said by rclone's server as long as nobody has begun an upload.
            Err(Failure { class: Class::Denied | Class::Unsupported | Class::MissingUpload, text }) => {
                tracing::debug!("unfinished uploads cannot be listed, so none is removed: {text}");
                return Ok(0);
            }
            stale => stale.map_err(|failure| {
                let what = format!("prefix=`{}`", self.prefix);
                failure.error(Operation::Sweep, &self.settings.bucket, &what)
            })?,
        };
        let swept = stale.into_iter().map(|(name, id)| self.abort(name, id));
        let swept: Vec<bool> =
            stream::iter(swept).buffer_unordered(self.settings.part_concurrency).collect().await;
        Ok(swept.into_iter().filter(|swept| *swept).count() as u64)
    }

    async fn stale_uploads(&self, older_than: Timestamp) -> Result<Vec<(String, String)>, Failure> {
        let mut stale = Vec::new();
        let mut marker: (Option<String>, Option<String>) = (None, None);
        loop {
            let page = self.retrying(0, |client| {
                let request = client
                    .list_multipart_uploads()
                    .bucket(&self.settings.bucket)
                    .prefix(&self.prefix)
                    .set_key_marker(marker.0.clone())
                    .set_upload_id_marker(marker.1.clone());
                async { request.send().await.map_err(Failure::of) }
            });
            let page = page.await?;
            stale.extend(page.uploads.unwrap_or_default().into_iter().filter_map(|upload| {
                let (name, id) = (upload.key?, upload.upload_id?);
                // Others may share the bucket, and even the prefix: only a key of ours is ours.
                let is_ours = Key::parse(name.strip_prefix(&self.prefix)?).is_some();
                let began_at = timestamp(Some(upload.initiated?));
                (is_ours && began_at < older_than).then_some((name, id))
            }));
            let next = (page.next_key_marker, page.next_upload_id_marker);
            if page.is_truncated != Some(true) || next == marker {
                return Ok(stale);
            }
            marker = next;
        }
    }

    async fn abort(&self, name: String, upload_id: String) -> bool {
        match self.try_abort(&name, &upload_id).await {
            Ok(()) => {
                crash::at(Point::S3UnfinishedAborted);
                true
            }
            Err(failure) => {
                tracing::debug!(upload = %name, "an unfinished upload stays: {}", failure.text);
                false
            }
        }
    }

    pub(super) async fn try_abort(&self, name: &str, upload_id: &str) -> Result<(), Failure> {
        let aborted = self.retrying(0, |client| {
            let request =
                client.abort_multipart_upload().bucket(&self.settings.bucket).key(name).upload_id(upload_id);
            async { request.send().await.map_err(Failure::of) }
        });
        aborted.await.map(drop)
    }
}

/// An upload that has begun; whoever lets go of it before [`Upload::finished`] aborts it.
pub(super) struct Upload {
    client: Client,
    bucket: String,
    name: String,
    id: String,
    unfinished: bool,
}

impl Upload {
    fn finished(mut self) {
        self.unfinished = false;
    }

    /// Its name and id; to abort it is from now on the caller's part.
    pub(super) fn leave(mut self) -> (String, String) {
        self.unfinished = false;
        (std::mem::take(&mut self.name), std::mem::take(&mut self.id))
    }

    async fn abort(mut self) {
        self.request().await;
        // Not before: whoever drops us while we ask leaves the asking to Drop.
        self.unfinished = false;
    }

    fn request(&self) -> impl Future<Output = ()> + Send + use<> {
        let request =
            self.client.abort_multipart_upload().bucket(&self.bucket).key(&self.name).upload_id(&self.id);
        let name = self.name.clone();
        async move {
            // Not worth waiting long for: what stays is swept later, or by the bucket's own rule.
            let limit = std::time::Duration::from_secs(10);
            match tokio::time::timeout(limit, request.send()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    let failure = Failure::of(error);
                    tracing::debug!(upload = %name, "a failed upload stays to be swept: {}", failure.text);
                }
                Err(_) => tracing::debug!(upload = %name, "a failed upload stays to be swept: no answer"),
            }
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.unfinished
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(self.request());
        }
    }
}

/// The upload's id from an answer the SDK cannot read.
///
/// Some stores (rclone's server among them) call the answer's root element by another name, which
/// the SDK refuses; everything else in it is as it should be.
fn misnamed_upload_id(response: &HttpResponse) -> Option<String> {
    if !response.status().is_success() {
        return None;
    }
    let text = std::str::from_utf8(response.body().bytes()?).ok()?;
    let (_, rest) = text.split_once("<UploadId>")?;
    let (id, _) = rest.split_once("</UploadId>")?;
    let is_plain =
        !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'<' && byte != b'&');
    is_plain.then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::primitives::SdkBody;

    use super::*;

    #[test]
    fn an_upload_is_known_whatever_its_answer_is_called() {
        let answer = |status: u16, body: &'static str| {
            HttpResponse::new(status.try_into().expect("a status"), SdkBody::from(body))
        };
        let body = "<InitiateMultipartUpload><UploadId>02b8bfd4-0f6a</UploadId></InitiateMultipartUpload>";
        assert_eq!(misnamed_upload_id(&answer(200, body)).as_deref(), Some("02b8bfd4-0f6a"));
        assert_eq!(misnamed_upload_id(&answer(503, body)), None);
        assert_eq!(misnamed_upload_id(&answer(200, "<UploadId></UploadId>")), None);
        assert_eq!(misnamed_upload_id(&answer(200, "<UploadId>a<b</UploadId>")), None);
        assert_eq!(misnamed_upload_id(&answer(200, "<html>sign in</html>")), None);
    }
}
