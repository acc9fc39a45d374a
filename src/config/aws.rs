//! What AWS accepts as a name: buckets, prefixes, regions, roles, sessions, endpoints.

use std::net::IpAddr;

use hyper::Uri;

use super::value::Parsed;

/// S3 keys have at most 1,024 bytes, of which ours below the prefix take less than half.
const PREFIX_BYTES_MAX: usize = 512;

/// The longest session name that STS takes, in characters.
const SESSION_NAME_MAX: usize = 64;

/// A general purpose bucket.
pub(super) fn bucket(text: &str) -> Parsed<String> {
    let is_end = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_inner = |b: u8| is_end(b) || matches!(b, b'.' | b'-');
    let bytes = text.as_bytes();
    let well_formed = (3..=63).contains(&bytes.len())
        && bytes.iter().all(|b| is_inner(*b))
        && [bytes.first(), bytes.last()].into_iter().flatten().all(|b| is_end(*b))
        && !text.contains("..")
        && text.parse::<IpAddr>().is_err();
    if !well_formed {
        return Err(
            "a bucket's name is 3 to 63 characters of a-z 0-9 . - that begins and ends with a letter \
                    or digit and is no IP address; it is given without s3:// and without a path"
                .into(),
        );
    }
    let reserved_start = ["xn--", "sthree-", "amzn-s3-demo-"].iter().find(|part| text.starts_with(**part));
    let reserved_end =
        ["-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"].iter().find(|part| text.ends_with(**part));
    match reserved_start.or(reserved_end) {
        Some(part) => Err(format!("AWS keeps names with `{part}` for itself")),
        None => Ok(text.to_owned()),
    }
}

/// What stands before every key, without the slash between; outer slashes are dropped.
pub(super) fn prefix(text: &str) -> Parsed<String> {
    let prefix = text.trim_matches('/');
    let is_part = |part: &str| !matches!(part, "" | "." | "..") && !part.chars().any(char::is_control);
    if prefix.len() > PREFIX_BYTES_MAX || !(prefix.is_empty() || prefix.split('/').all(is_part)) {
        return Err(format!(
            "a prefix is at most {PREFIX_BYTES_MAX} bytes of names separated by single slashes, none of them . or .."
        ));
    }
    Ok(prefix.to_owned())
}

/// A region as AWS or an S3-compatible store names it.
pub(super) fn region(text: &str) -> Parsed<String> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if text.len() > 63 || !text.bytes().all(allowed) {
        return Err("a region is made of a-z 0-9 -".into());
    }
    Ok(text.to_owned())
}

/// The ARN of an IAM role, in any partition.
pub(super) fn role_arn(text: &str) -> Parsed<String> {
    let is_account = |text: &str| text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let is_role = match parts[..] {
        ["arn", partition, "iam", "", account, resource] => {
            let is_partition = partition == "aws" || partition.starts_with("aws-");
            let name = resource.strip_prefix("role/").unwrap_or_default();
            is_partition
                && is_account(account)
                && !name.is_empty()
                && name.chars().all(|c| is_word(c) || c == '/')
        }
        _ => false,
    };
    if !is_role {
        return Err("a role is arn:aws:iam:: and a 12 digit account and :role/NAME".into());
    }
    Ok(text.to_owned())
}

/// The name of an assumed role's session.
pub(super) fn session_name(text: &str) -> Parsed<String> {
    if !(2..=SESSION_NAME_MAX).contains(&text.len()) || !text.chars().all(is_word) {
        return Err(format!(
            "a session's name is 2 to {SESSION_NAME_MAX} characters of a-z A-Z 0-9 _ + = , . @ -"
        ));
    }
    Ok(text.to_owned())
}

/// A session name that tells the machine.
pub(super) fn session_name_of(machine: &str) -> String {
    let name = format!("lifeboat-{machine}");
    name.chars().map(|c| if is_word(c) { c } else { '-' }).take(SESSION_NAME_MAX).collect()
}

/// The characters that IAM allows in names.
fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '=' | ',' | '.' | '@' | '-')
}

/// An http or https URL without user and query; some stores stand below a path.
pub(super) fn endpoint(text: &str) -> Parsed<Uri> {
    let uri: Uri = text.parse().map_err(|_| "it is not a URL".to_owned())?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return Err("an endpoint begins with https:// (or http://) and a host".into());
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("an endpoint carries no user and no password".into());
    }
    if uri.query().is_some() || text.contains('#') {
        return Err("an endpoint has no query".into());
    }
    Ok(uri)
}

/// Whether speaking to this endpoint would send data in clear over a network.
pub(super) fn is_in_clear(endpoint: &Uri) -> bool {
    endpoint.scheme_str() == Some("http") && !is_loopback(endpoint)
}

/// Whether the host of this URL is this machine.
pub(crate) fn is_loopback(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T>(parse: fn(&str) -> Parsed<T>, good: &[&str], bad: &[&str]) {
        for text in good {
            assert!(parse(text).is_ok(), "{text}");
        }
        for text in bad {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn buckets() {
        check(
            bucket,
            &["abc", "my-app-backups", "6-disc-changer-dev", "a.b.c", &"a".repeat(63)],
            &[
                "",
                "ab",
                &"a".repeat(64),
                "My-Bucket",
                "my_bucket",
                "-abc",
                "abc-",
                ".abc",
                "a..b",
                "192.168.0.1",
                "s3://abc",
                "abc/def",
                "arn:aws:s3:::abc",
                "xn--abc",
                "abc-s3alias",
                "abc--x-s3",
                "bücket",
            ],
        );
    }

    #[test]
    fn prefixes() {
        check(
            prefix,
            &["", "/", "a", "a/b", "/a/b/", "my app"],
            &["a//b", "../a", "a/./b", "a\nb", &"a".repeat(513)],
        );
        assert_eq!(prefix("/a/b/"), Ok("a/b".into()));
    }

    #[test]
    fn roles_and_sessions() {
        check(
            role_arn,
            &[
                "arn:aws:iam::123456789012:role/backup",
                "arn:aws-us-gov:iam::123456789012:role/team/backup+1",
                "arn:aws-cn:iam::123456789012:role/a",
            ],
            &[
                "",
                "backup",
                "arn:aws:iam::<ACCOUNT_ID>:role/backup",
                "arn:aws:iam::12345678901:role/backup",
                "arn:aws:iam::123456789012:user/backup",
                "arn:aws:iam::123456789012:role/",
                "arn:aws:iam::123456789012:role/a:b",
                "arn:gcp:iam::123456789012:role/a",
                "arn:aws:sts::123456789012:assumed-role/a/b",
            ],
        );
        check(
            session_name,
            &["ab", "lifeboat-148e", "a@b.c,d=e+f_g"],
            &["", "a", "a b", "a/b", "ä-session", &"a".repeat(65)],
        );
        check(region, &["eu-central-1", "auto", "us-gov-west-1"], &["EU", "eu central", "eu_1"]);
    }

    #[test]
    fn a_session_name_made_from_any_machine_is_valid() {
        for machine in ["148e", "my host/ä", &"x".repeat(200), ""] {
            let name = session_name_of(machine);
            assert_eq!(session_name(&name), Ok(name.clone()), "{machine}");
        }
    }

    #[test]
    fn endpoints() {
        check(
            endpoint,
            &["https://s3.example.com", "http://127.0.0.1:9000", "http://[::1]:9000/", "https://host/path"],
            &[
                "",
                "s3.example.com",
                "ftp://host",
                "https://",
                "https://user:pw@host",
                "https://h?x=1",
                "/data",
                "https://h/#a",
            ],
        );
        let clear = |text: &str| is_in_clear(&endpoint(text).expect(text));
        assert!(
            clear("http://minio:9000") && clear("http://10.0.0.1") && clear("http://127.0.0.1.example.com")
        );
        assert!(clear("http://minio.localhost"), "who that is, is up to the resolver");
        assert!(!clear("https://minio") && !clear("http://localhost:9000") && !clear("http://[::1]:9000"));
    }
}
