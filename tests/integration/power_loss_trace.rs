//! What a run of the program asked of the file system, in order, as `strace` saw it.
//!
//! Only calls that change files or make changes durable are kept, and only those that succeeded.

use std::collections::HashMap;
use std::path::PathBuf;

/// The calls that are recorded. Whatever else changes a file is among the last, so that [`parse`] can
/// refuse what the model does not know.
pub const CALLS: &str = "open,openat,creat,close,dup,dup2,dup3,fcntl,lseek,write,pwrite64,ftruncate,fsync,fdatasync,rename,\
     renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,writev,pwritev,pwritev2,truncate,fallocate,\
     copy_file_range,sendfile,symlink,symlinkat";

/// One step of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Open { path: PathBuf, fd: i32, creates: bool, truncates: bool },
    Duplicate { fd: i32, as_fd: i32 },
    Close { fd: i32 },
    Seek { fd: i32, to: u64 },
    Write { fd: i32, bytes: Vec<u8> },
    WriteAt { fd: i32, bytes: Vec<u8>, at: u64 },
    Cut { fd: i32, to: u64 },
    Sync { fd: i32 },
    Rename { from: PathBuf, to: PathBuf },
    Link { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
    MakeFolder { path: PathBuf },
}

/// The steps in the log of `strace -f -xx`.
pub fn parse(log: &str) -> Vec<Step> {
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut steps = Vec::new();
    for line in log.lines() {
        let (thread, call) = line.split_once(' ').expect("a thread and what it did");
        let call = call.trim_start();
        if let Some(start) = call.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, start);
        } else if let Some(rest) = call.strip_prefix("<... ") {
            let (_, rest) = rest.split_once(" resumed>").expect("the rest of a call");
            let start = begun.remove(thread).expect("its beginning");
            steps.extend(step(&format!("{start}{rest}")));
        } else if !call.starts_with(['+', '-']) {
            steps.extend(step(call));
        }
    }
    steps
}

/// `name("a", 1, B) = 0` as a step; none if it failed, or changed nothing.
fn step(line: &str) -> Option<Step> {
    let (call, answer) = line.rsplit_once(" = ").unwrap_or_else(|| panic!("no answer: {line}"));
    let answer: i64 = answer.split_whitespace().next()?.parse().ok()?;
    if answer < 0 {
        return None;
    }
    let (name, arguments) = call.trim_end().strip_suffix(')')?.split_once('(')?;
    let arguments: Vec<&str> = arguments.split(", ").collect();
    let number = |at: usize| -> i64 { arguments[at].parse().unwrap_or_else(|_| panic!("a number: {line}")) };
    let fd = |at: usize| number(at) as i32;
    let path = |at: usize| PathBuf::from(String::from_utf8(text(arguments[at])).expect("UTF-8"));
    let opened = |path_at: usize| {
        let flags = arguments[path_at + 1];
        Step::Open {
            path: path(path_at),
            fd: answer as i32,
            creates: flags.contains("O_CREAT"),
            truncates: flags.contains("O_TRUNC"),
        }
    };
    Some(match name {
        "open" => opened(0),
        "openat" => opened(1),
        "close" => Step::Close { fd: fd(0) },
        "dup" | "dup2" | "dup3" => Step::Duplicate { fd: fd(0), as_fd: answer as i32 },
        "fcntl" if arguments[1].starts_with("F_DUPFD") => Step::Duplicate { fd: fd(0), as_fd: answer as i32 },
        "fcntl" => return None,
        "lseek" => Step::Seek { fd: fd(0), to: answer as u64 },
        "write" => Step::Write { fd: fd(0), bytes: written(arguments[1], answer, line) },
        "pwrite64" => {
            Step::WriteAt { fd: fd(0), bytes: written(arguments[1], answer, line), at: number(3) as u64 }
        }
        "ftruncate" => Step::Cut { fd: fd(0), to: number(1) as u64 },
        "fsync" | "fdatasync" => Step::Sync { fd: fd(0) },
        "rename" => Step::Rename { from: path(0), to: path(1) },
        "renameat" | "renameat2" => Step::Rename { from: path(1), to: path(3) },
        "link" => Step::Link { from: path(0), to: path(1) },
        "linkat" => Step::Link { from: path(1), to: path(3) },
        "unlink" => Step::Remove { path: path(0) },
        "unlinkat" => Step::Remove { path: path(1) },
        "mkdir" => Step::MakeFolder { path: path(0) },
        "mkdirat" => Step::MakeFolder { path: path(1) },
        // To descriptors that are no files, such as the program's output.
        "writev" if fd(0) <= 2 => return None,
        other => panic!("the model of the disk does not know `{other}`: {line}"),
    })
}

fn written(argument: &str, count: i64, line: &str) -> Vec<u8> {
    let mut bytes = text(argument);
    assert!(bytes.len() as i64 >= count, "the log has only a part of what was written: {line}");
    bytes.truncate(count as usize);
    bytes
}

/// The bytes of `"\x61\x62"`.
fn text(argument: &str) -> Vec<u8> {
    let digits = argument.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let digits = digits.unwrap_or_else(|| panic!("no whole string: {argument}"));
    let byte = |digits: &str| u8::from_str_radix(digits, 16).expect("two digits");
    digits.split("\\x").skip(1).map(byte).collect()
}

#[test]
fn a_log_is_read_also_where_threads_interrupt_each_other() {
    let log = r#"7  openat(AT_FDCWD, "\x2f\x61", O_RDWR|O_CREAT|O_EXCL, 0600) = 9
7  fcntl(9, F_DUPFD_CLOEXEC, 3) = 10
8  write(9, "\x68\x69\x21", 3 <unfinished ...>
7  openat(AT_FDCWD, "\x2f\x62", O_RDONLY) = -1 ENOENT (No such file or directory)
8  <... write resumed>) = 2
7  pwrite64(10, "\x00", 1, 4095) = 1
7  +++ exited with 0 +++
8  linkat(AT_FDCWD, "\x2f\x61", AT_FDCWD, "\x2f\x63", 0) = 0
"#;
    let path = PathBuf::from;
    let expected = [
        Step::Open { path: path("/a"), fd: 9, creates: true, truncates: false },
        Step::Duplicate { fd: 9, as_fd: 10 },
        Step::Write { fd: 9, bytes: b"hi".to_vec() },
        Step::WriteAt { fd: 10, bytes: vec![0], at: 4095 },
        Step::Link { from: path("/a"), to: path("/c") },
    ];
    assert_eq!(parse(log), expected);
}
