//! Looking at a store instead of using it.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};

use super::S3;
use super::failure::{Class, Failure};
use super::put::new_put_id;
use super::read::timestamp;
use crate::error::Result;
use crate::snapshot::Key;
use crate::storage::{Examine, Greeting, Operation};

#[async_trait]
impl Examine for S3 {
    async fn greet(&self) -> Result<Greeting> {
        let heard = Headers::default();
        let answered = self.retrying(0, |client| {
            let request = client.head_bucket().bucket(&self.settings.bucket);
            let request = request.customize().interceptor(heard.clone());
            async { request.send().await.map_err(Failure::of) }
        });
        let answered = answered.await;
        let greeting = heard.greeting();
        match answered {
            Ok(_) => Ok(greeting),
            Err(failure) => match failure.class {
                Class::Elsewhere => Ok(Greeting { is_elsewhere: true, ..greeting }),
                // An answer to HEAD has no body to name the error in; S3 answers 400 to a signature
                // for another region, and then names its own.
                Class::Refused if greeting.region.is_some() => {
                    let ours = self.settings.signing_region()?;
                    Ok(Greeting { is_elsewhere: greeting.region != Some(ours), ..greeting })
                }
                Class::Denied | Class::Refused if greeting.time.is_some() => Ok(greeting),
                Class::Missing => {
                    Err(self.explain_greeting(Failure { class: Class::MissingBucket, ..failure }))
                }
                _ => Err(self.explain_greeting(failure)),
            },
        }
    }

    async fn begin_and_abort(&self, key: &Key) -> Result<()> {
        let (name, upload_id) = self.begin(key, &new_put_id()?).await?.leave();
        self.try_abort(&name, &upload_id)
            .await
            .map_err(|failure| self.explain(failure, Operation::Create, key))
    }
}

impl S3 {
    fn explain_greeting(&self, failure: Failure) -> crate::error::Error {
        failure.error(Operation::Head, &self.settings.bucket, &format!("prefix=`{}`", self.prefix))
    }
}

/// The headers of the last answer that say something of the store itself.
#[derive(Debug, Clone, Default)]
struct Headers(Arc<Mutex<Greeting>>);

impl Headers {
    fn greeting(&self) -> Greeting {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Intercept for Headers {
    fn name(&self) -> &'static str {
        "Headers"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let header = |name: &str| context.response().headers().get(name);
        let date = header("date").and_then(|date| DateTime::from_str(date, DateTimeFormat::HttpDate).ok());
        let greeting = Greeting {
            time: date.map(|date| timestamp(Some(date))),
            region: header("x-amz-bucket-region").map(|region| region.escape_debug().to_string()),
            is_elsewhere: false,
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = greeting;
        Ok(())
    }
}
