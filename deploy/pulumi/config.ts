// The stack's configuration: every key, its default, and what is refused with which words.
//
// Nothing here knows Pulumi, so that every rule is tested by calling a function.

/** What a stack is built from. */
export interface Settings {
    /** The stack's name: it ends up in the names of the role and of the bucket. */
    readonly environment: string;
    readonly region: string;
    readonly bucketName: string;
    /** Where keys begin: empty, or ending in "/"; the daemon's BACKUP_S3_PREFIX. */
    readonly prefix: string;
    readonly flyAppName: string;
    readonly flyOrgSlug: string;
    readonly createFlyOidcProvider: boolean;
    /**
     * The application gets a role of its own, which can add backups and remove none: AWS_ROLE_ARN is then
     * `appendOnlyRoleArn`. The full role trusts no machine any more, but principals of the account that
     * may assume it; one of them has to prune.
     */
    readonly appendOnlyRole: boolean;
    /** An application for drills, which gets a role that only reads; without it there is no such role. */
    readonly drillFlyAppName: string | undefined;
    /** Roles get the boundary that setup-github-oidc.sh made; GitHub may write no others. */
    readonly permissionsBoundary: boolean;
    /** For how many days a deleted or replaced object can be brought back. */
    readonly noncurrentDays: number;
    readonly accessLogging: boolean;
    /** Metrics of all requests. The alarm has metrics of its own. */
    readonly requestMetrics: boolean;
    readonly replicaRegion: string | undefined;
    /** The alarm goes off after this many hours without a snapshot; 0 for no alarm. */
    readonly alarmHours: number;
    /** Whose snapshots the alarm waits for: the database's name in storage. */
    readonly databaseName: string;
    readonly alarmEmail: string | undefined;
    /** Nothing that holds backups can be deleted by Pulumi. */
    readonly protect: boolean;
}

/** Everything that is wrong with a configuration, one line each. */
export class ConfigError extends Error {
    constructor(readonly problems: readonly string[]) {
        super(["the stack's configuration cannot be used:", ...problems].join("\n  "));
        this.name = "ConfigError";
    }
}

const PROJECT = "sqlite-backup-restore";

/** Each key of the project, its default and how its value is read; `undefined` means required. */
const KEYS = {
    backupBucketName: { default: "6-disc-changer-{env}-sqlite-backups", read: bucketName },
    flyAppName: { default: undefined, read: flyAppName },
    flyOrgSlug: { default: undefined, read: flyOrgSlug },
    createFlyOidcProvider: { default: "true", read: flag },
    s3Prefix: { default: "", read: prefix },
    databaseName: { default: "app", read: databaseName },
    appendOnlyRole: { default: "false", read: flag },
    drillFlyAppName: { default: "", read: optional(flyAppName) },
    permissionsBoundary: { default: "false", read: flag },
    noncurrentDays: { default: "7", read: wholeNumber(1, 3650) },
    accessLogging: { default: "false", read: flag },
    requestMetrics: { default: "true", read: flag },
    replicaRegion: { default: "", read: optional(region) },
    // Above the longest time in which nobody writes: an unchanged database is not stored again.
    // CloudWatch looks back a week at most.
    alarmHours: { default: "26", read: wholeNumber(0, 168) },
    alarmEmail: { default: "", read: optional(email) },
} as const;

/** S3's limit, shared with the names that are made from the bucket's. */
const BUCKET_NAME_MAX = 63;

/** What stands behind the bucket's name in those of its companions. */
export const REPLICA_SUFFIX = "-replica";
export const LOGS_SUFFIX = "-logs";

/** Reads a stack's whole configuration, as `pulumi.runtime.allConfig()` has it; throws {@link ConfigError}. */
export function readSettings(environment: string, config: Readonly<Record<string, string>>): Settings {
    const problems: string[] = [];
    const attempt = <T>(key: string, value: string | undefined, read: (text: string) => T): T => {
        try {
            if (value === undefined) throw new Error(`is missing: pulumi config set ${key} ...`);
            return read(value);
        } catch (error) {
            problems.push(`${key}: ${(error as Error).message}`);
            return undefined as T; // Never seen: with a problem noted, nothing is returned.
        }
    };
    const value = <K extends keyof typeof KEYS>(key: K) => {
        const { default: fallback, read } = KEYS[key];
        const text = config[`${PROJECT}:${key}`] ?? fallback?.replace("{env}", environment);
        return attempt(`${PROJECT}:${key}`, text, read as (text: string) => ReturnType<(typeof KEYS)[K]["read"]>);
    };

    const settings: Settings = {
        environment: attempt("stack", environment, stackName),
        region: attempt("aws:region", config["aws:region"], region),
        bucketName: value("backupBucketName"),
        prefix: value("s3Prefix"),
        flyAppName: value("flyAppName"),
        flyOrgSlug: value("flyOrgSlug"),
        createFlyOidcProvider: value("createFlyOidcProvider"),
        appendOnlyRole: value("appendOnlyRole"),
        drillFlyAppName: value("drillFlyAppName"),
        permissionsBoundary: value("permissionsBoundary"),
        noncurrentDays: value("noncurrentDays"),
        accessLogging: value("accessLogging"),
        requestMetrics: value("requestMetrics"),
        replicaRegion: value("replicaRegion"),
        alarmHours: value("alarmHours"),
        databaseName: value("databaseName"),
        alarmEmail: value("alarmEmail"),
        protect: environment === "prod",
    };

    for (const key of Object.keys(config)) {
        if (key.startsWith(`${PROJECT}:`) && !(key.slice(PROJECT.length + 1) in KEYS)) {
            problems.push(`${key}: there is no such key; there are ${Object.keys(KEYS).join(", ")}`);
        }
    }
    if (problems.length === 0) problems.push(...contradictions(settings));
    if (problems.length > 0) throw new ConfigError(problems);
    return settings;
}

/** What is wrong between values that are right by themselves. */
function contradictions(settings: Settings): string[] {
    const problems: string[] = [];
    if (settings.drillFlyAppName === settings.flyAppName) {
        problems.push(`${PROJECT}:drillFlyAppName: is the application itself, which has its role: name a second one`);
    }
    if (settings.replicaRegion === settings.region) {
        problems.push(`${PROJECT}:replicaRegion: is the region of the bucket itself: name a second one`);
    }
    if (settings.alarmEmail !== undefined && settings.alarmHours === 0) {
        problems.push(`${PROJECT}:alarmEmail: there is no alarm to send: set alarmHours`);
    }
    const companions = [
        settings.replicaRegion === undefined ? "" : REPLICA_SUFFIX,
        settings.accessLogging ? LOGS_SUFFIX : "",
    ];
    for (const suffix of companions) {
        if (settings.bucketName.length + suffix.length > BUCKET_NAME_MAX) {
            problems.push(
                `${PROJECT}:backupBucketName: with ${suffix} behind it, it is longer than ${BUCKET_NAME_MAX} characters`,
            );
        }
    }
    return problems;
}

function stackName(text: string): string {
    if (!/^[a-z][a-z0-9-]{0,19}$/.test(text)) {
        throw new Error(`\`${text}\` cannot be part of names: 1 to 20 characters of a-z 0-9 -, a letter first`);
    }
    return text;
}

function region(text: string): string {
    if (!/^[a-z]{2}(-[a-z]+){1,2}-[0-9]{1,2}$/.test(text)) {
        throw new Error(`\`${text}\` is not a region of AWS, such as us-east-1`);
    }
    return text;
}

/** The same rules as the daemon's (src/config/aws.rs), and AWS's. */
function bucketName(text: string): string {
    const isAddress = /^[0-9]+(\.[0-9]+){3}$/.test(text);
    if (!/^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/.test(text) || text.includes("..") || isAddress) {
        throw new Error(
            `\`${text}\` is not a bucket's name: 3 to 63 characters of a-z 0-9 . -, beginning and ending with a ` +
                "letter or digit, no IP address, without s3:// and without a path",
        );
    }
    const reserved =
        ["xn--", "sthree-", "amzn-s3-demo-"].find((part) => text.startsWith(part)) ??
        ["-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"].find((part) => text.endsWith(part));
    if (reserved !== undefined) throw new Error(`AWS keeps names with \`${reserved}\` for itself`);
    return text;
}

/** Anything but plain names would widen or break the policies: they know `*`, `?` and `${`. */
function prefix(text: string): string {
    const trimmed = text.replace(/^\/+|\/+$/g, "");
    if (trimmed === "") return "";
    if (trimmed.length > 512 || !/^[A-Za-z0-9._=+@-]+(\/[A-Za-z0-9._=+@-]+)*$/.test(trimmed)) {
        throw new Error(
            `\`${text}\` cannot stand in a policy: names of A-Z a-z 0-9 . _ = + @ - with single slashes between them`,
        );
    }
    return `${trimmed}/`;
}

function databaseName(text: string): string {
    if (!/^[a-z0-9_-][a-z0-9._-]{0,63}$/.test(text)) {
        throw new Error(
            `\`${text}\` is not a database's name in storage: 1 to 64 characters of a-z 0-9 . _ -, no dot first`,
        );
    }
    return text;
}

function flyAppName(text: string): string {
    if (!/^[a-z0-9][a-z0-9-]{0,62}$/.test(text)) {
        throw new Error(`\`${text}\` is not an application's name on fly.io: a-z 0-9 -, no wildcards, see \`fly apps list\``);
    }
    return text;
}

function flyOrgSlug(text: string): string {
    if (text === "personal") {
        throw new Error(
            "`personal` is an alias: fly.io signs tokens with the organisation's real slug, and AWS would refuse " +
                "every one of them. The slug stands in the address of the dashboard, and `lifeboat doctor` on a " +
                "machine prints it",
        );
    }
    if (text === "your-fly-org") throw new Error("still holds the example's value: name your organisation's slug");
    if (!/^[a-z0-9][a-z0-9-]{0,62}$/.test(text)) {
        throw new Error(`\`${text}\` is not the slug of an organisation on fly.io: a-z 0-9 -, no wildcards, no URL`);
    }
    return text;
}

function flag(text: string): boolean {
    if (text !== "true" && text !== "false") throw new Error(`\`${text}\` is neither true nor false`);
    return text === "true";
}

function wholeNumber(least: number, most: number): (text: string) => number {
    return (text) => {
        const number = /^[0-9]{1,6}$/.test(text) ? Number(text) : NaN;
        if (!(number >= least && number <= most)) {
            throw new Error(`\`${text}\` is not a whole number from ${least} to ${most}`);
        }
        return number;
    };
}

function email(text: string): string {
    if (!/^[^\s@]+@[^\s@]+\.[^\s@]+$/.test(text)) throw new Error(`\`${text}\` is not an address to send mail to`);
    return text;
}

function optional<T>(read: (text: string) => T): (text: string) => T | undefined {
    return (text) => (text === "" ? undefined : read(text));
}
