//! The server's one bucket: s3s-fs, made atomic and given what it lacks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::Bytes;
use http_body_util::BodyExt;
use s3s::dto::*;
use s3s::{Body, S3 as Protocol, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;

use super::BUCKET;

#[derive(Clone)]
pub(super) struct Bucket {
    pub(super) files: Arc<FileSystem>,
    pub(super) state: Arc<Mutex<State>>,
    /// s3s-fs looks at a condition and writes in two steps, and metadata in a third; S3 does not.
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) conditions: Conditions,
    pub(super) ignores_ranges: bool,
    pub(super) uploads: Vec<Upload>,
    /// Parts of any size make an object; s3s-fs, as S3, wants 5 MiB of all but the last.
    pub(super) takes_small_parts: bool,
}

/// A multipart upload that has begun and not ended.
#[derive(Clone)]
pub(super) struct Upload {
    key: String,
    id: String,
    pub(super) began: SystemTime,
    metadata: Option<Metadata>,
    small_parts: BTreeMap<i32, Bytes>,
}

#[derive(Default, Clone, Copy)]
pub(super) enum Conditions {
    #[default]
    Honoured,
    Ignored,
    Refused,
}

impl Bucket {
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().expect("not poisoned"))
    }

    fn judge<T>(&self, if_match: &mut Option<T>, if_none_match: &mut Option<T>) -> S3Result<()> {
        match self.with(|state| state.conditions) {
            Conditions::Honoured => {}
            Conditions::Ignored => (*if_match, *if_none_match) = (None, None),
            Conditions::Refused if if_match.is_some() || if_none_match.is_some() => {
                return Err(s3_error!(NotImplemented));
            }
            Conditions::Refused => {}
        }
        Ok(())
    }

    /// Completes an upload of parts that were kept here.
    async fn put_together(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let id = request.input.upload_id.clone();
        let upload = self.with(|state| state.uploads.iter().find(|upload| upload.id == id).cloned());
        let upload = upload.ok_or_else(|| s3_error!(NoSuchUpload))?;
        let named = request.input.multipart_upload.as_ref().and_then(|named| named.parts.clone());
        let mut whole = Vec::new();
        for part in named.unwrap_or_default() {
            let number = part.part_number.ok_or_else(|| s3_error!(InvalidPart))?;
            whole.extend_from_slice(upload.small_parts.get(&number).ok_or_else(|| s3_error!(InvalidPart))?);
        }
        let put = request.map_input(|input| PutObjectInput {
            bucket: input.bucket,
            key: input.key,
            content_length: Some(whole.len() as i64),
            body: Some(StreamingBlob::from(Body::from(Bytes::from(whole)))),
            if_none_match: input.if_none_match,
            metadata: upload.metadata,
            ..Default::default()
        });
        let stored = self.files.put_object(put).await?;
        Ok(stored.map_output(|output| CompleteMultipartUploadOutput {
            bucket: Some(BUCKET.to_owned()),
            e_tag: output.e_tag,
            ..Default::default()
        }))
    }

    fn ended(&self, upload_id: &str) {
        self.with(|state| state.uploads.retain(|upload| upload.id != upload_id));
    }
}

#[async_trait::async_trait]
impl Protocol for Bucket {
    async fn put_object(
        &self,
        mut request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        self.judge(&mut request.input.if_match, &mut request.input.if_none_match)?;
        if request.input.bucket != BUCKET {
            return Err(s3_error!(NoSuchBucket)); // s3s-fs would create it.
        }
        let _turn = self.turn.lock().await;
        self.files.put_object(request).await
    }

    async fn get_object(
        &self,
        mut request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        if self.with(|state| state.ignores_ranges) {
            request.input.range = None;
        }
        let _turn = self.turn.lock().await;
        self.files.get_object(request).await
    }

    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.files.head_bucket(request).await
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let _turn = self.turn.lock().await;
        self.files.head_object(request).await
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let _turn = self.turn.lock().await;
        self.files.delete_object(request).await
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.files.list_objects_v2(request).await
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let (key, metadata) = (request.input.key.clone(), request.input.metadata.clone());
        let begun = self.files.create_multipart_upload(request).await?;
        let id = begun.output.upload_id.clone().expect("an id");
        let upload = Upload { key, id, began: SystemTime::now(), metadata, small_parts: BTreeMap::new() };
        self.with(|state| state.uploads.push(upload));
        Ok(begun)
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        if !self.with(|state| state.takes_small_parts) {
            return self.files.upload_part(request).await;
        }
        let input = request.input;
        let body = Body::from(input.body.ok_or_else(|| s3_error!(IncompleteBody))?);
        let bytes = body.collect().await.map_err(|_| s3_error!(IncompleteBody))?.to_bytes();
        let e_tag = Some(ETag::Strong(format!("{}-{}", input.part_number, bytes.len())));
        self.with(|state| {
            let upload = state.uploads.iter_mut().find(|upload| upload.id == input.upload_id);
            upload.map(|upload| upload.small_parts.insert(input.part_number, bytes))
        })
        .ok_or_else(|| s3_error!(NoSuchUpload))?;
        Ok(S3Response::new(UploadPartOutput { e_tag, ..Default::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        mut request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.judge(&mut request.input.if_match, &mut request.input.if_none_match)?;
        let _turn = self.turn.lock().await;
        let id = request.input.upload_id.clone();
        let completed = match self.with(|state| state.takes_small_parts) {
            true => self.put_together(request).await?,
            false => self.files.complete_multipart_upload(request).await?,
        };
        self.ended(&id);
        Ok(completed)
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let id = request.input.upload_id.clone();
        let aborted = self.files.abort_multipart_upload(request).await?;
        self.ended(&id);
        Ok(aborted)
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = request.input;
        let prefix = input.prefix.unwrap_or_default();
        let after = (input.key_marker.unwrap_or_default(), input.upload_id_marker.unwrap_or_default());
        let mut uploads: Vec<(String, String, SystemTime)> = self.with(|state| {
            let begun = state.uploads.iter();
            begun.map(|upload| (upload.key.clone(), upload.id.clone(), upload.began)).collect()
        });
        uploads.retain(|(key, id, _)| key.starts_with(&prefix) && (key, id) > (&after.0, &after.1));
        uploads.sort();
        // One to a page, so that every listing of two has two pages.
        let is_truncated = Some(uploads.len() > 1);
        uploads.truncate(1);
        let last = uploads.last().cloned();
        let uploads = uploads.into_iter().map(|(key, id, began)| {
            let initiated = Some(Timestamp::from(began));
            MultipartUpload { key: Some(key), upload_id: Some(id), initiated, ..Default::default() }
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            uploads: Some(uploads.collect()),
            is_truncated,
            next_key_marker: last.as_ref().map(|(key, ..)| key.clone()),
            next_upload_id_marker: last.map(|(_, id, _)| id),
            ..Default::default()
        }))
    }
}
