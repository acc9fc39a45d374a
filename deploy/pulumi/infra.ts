// What a stack consists of: the bucket and what guards it, the roles, and the alarm.

import * as aws from "@pulumi/aws";
import * as pulumi from "@pulumi/pulumi";

import { LOGS_SUFFIX, REPLICA_SUFFIX, Settings } from "./config";
import { policy } from "./policies";

/** What others need to know of a stack. */
export interface BackupInfra {
    readonly bucketName: pulumi.Output<string>;
    readonly backupRestoreRoleArn: pulumi.Output<string>;
    readonly appendOnlyRoleArn: pulumi.Output<string> | undefined;
    readonly readOnlyRoleArn: pulumi.Output<string> | undefined;
    readonly flyOidcProviderArn: pulumi.Output<string>;
    readonly replicaBucketName: pulumi.Output<string> | undefined;
    readonly logBucketName: pulumi.Output<string> | undefined;
    readonly alarmTopicArn: pulumi.Output<string> | undefined;
}

/** The managed policy of this name bounds what any role of ours can be given (setup-github-oidc.sh). */
const BOUNDARY = "six-disc-changer-backup-boundary";

/** Server access logs are kept for this long. */
const LOG_DAYS = 90;

type Filled = (name: string) => pulumi.Output<string>;

/** Who may assume a role, and how its trust policy says so. */
interface Trusted {
    readonly who: string;
    readonly policy: pulumi.Output<string>;
}

/** Creates everything; `policies` is the folder of the policy files. */
export function createBackupInfra(settings: Settings, policies: string): BackupInfra {
    const role = `six-disc-changer-backup-restore-${settings.environment}`;
    const accountId = aws.getCallerIdentityOutput({}).accountId;
    const partition = aws.getPartitionOutput({}).partition;
    const filledWith =
        (own: { bucket?: string; app?: string }): Filled =>
        (name) =>
            pulumi.all([accountId, partition]).apply(([account, partition]) =>
                policy(policies, name, {
                    partition,
                    account,
                    bucket: settings.bucketName,
                    prefix: settings.prefix,
                    org: settings.flyOrgSlug,
                    app: settings.flyAppName,
                    replica_bucket: settings.bucketName + REPLICA_SUFFIX,
                    log_bucket: settings.bucketName + LOGS_SUFFIX,
                    ...own,
                }),
            );
    const filled = filledWith({});
    const boundary = settings.permissionsBoundary
        ? pulumi.interpolate`arn:${partition}:iam::${accountId}:policy/${BOUNDARY}`
        : undefined;

    const bucket = keptBucket("backups", settings.bucketName, undefined, settings, filled("bucket-policy"));
    const logBucket = settings.accessLogging ? accessLogs(bucket.bucket, settings, filled) : undefined;
    const replica =
        settings.replicaRegion === undefined
            ? undefined
            : keptBucket(
                  "replica",
                  settings.bucketName + REPLICA_SUFFIX,
                  settings.replicaRegion,
                  settings,
                  filledWith({ bucket: settings.bucketName + REPLICA_SUFFIX })("bucket-policy"),
              );
    if (replica !== undefined) replicate(bucket, replica, `${role}-replication`, filled, boundary);

    const providerArn = flyProvider(settings, accountId, partition);
    const machinesOf = (app: string): Trusted => ({
        who: `${app} on fly.io`,
        policy: filledWith({ app })("fly-trust-policy"),
    });
    const backupRole = (resource: string, name: string, trusted: Trusted, rights: string) => {
        const created = new aws.iam.Role(resource, {
            name,
            description: `Backups of ${settings.flyAppName} (${settings.environment}), for ${trusted.who}`,
            assumeRolePolicy: trusted.policy,
            permissionsBoundary: boundary,
            maxSessionDuration: 3600,
            tags: tags(settings),
        });
        new aws.iam.RolePolicy(resource, { role: created.name, name: "backups", policy: filled(rights) });
        return created.arn;
    };
    // Whoever holds a machine holds its token, and takes the widest role that trusts it: so one trusts it.
    const application = machinesOf(settings.flyAppName);
    const backupRestoreRoleArn = backupRole(
        "backup-restore",
        role,
        settings.appendOnlyRole ? operators(filled) : application,
        "role-policy",
    );
    const appendOnlyRoleArn = settings.appendOnlyRole
        ? backupRole("append-only", `${role}-append-only`, application, "append-only-policy")
        : undefined;
    const readOnlyRoleArn =
        settings.drillFlyAppName === undefined
            ? undefined
            : backupRole("read-only", `${role}-read-only`, machinesOf(settings.drillFlyAppName), "read-only-policy");

    if (settings.requestMetrics) {
        new aws.s3.BucketMetric("entire-bucket", { bucket: bucket.bucket.bucket, name: "EntireBucket" });
    }
    const alarmTopicArn = settings.alarmHours > 0 ? alarm(bucket.bucket, role, settings) : undefined;

    return {
        bucketName: bucket.bucket.bucket,
        backupRestoreRoleArn,
        appendOnlyRoleArn,
        readOnlyRoleArn,
        flyOidcProviderArn: providerArn,
        replicaBucketName: replica?.bucket.bucket,
        logBucketName: logBucket?.bucket,
        alarmTopicArn,
    };
}

/**
 * The account's own principals, as far as their own policies let them assume roles. A session that began with
 * a machine's token is none of them, whatever it is given later. No second factor is asked for: sessions
 * of IAM Identity Center never show theirs to a trust policy, and a schedule that prunes has none.
 */
function operators(filled: Filled): Trusted {
    return { who: "operators in this account", policy: filled("operator-trust-policy") };
}

interface KeptBucket {
    readonly bucket: aws.s3.Bucket;
    readonly versioning: aws.s3.BucketVersioning;
}

/** A bucket that holds backups: private, encrypted, versioned, and reached over TLS only. */
function keptBucket(
    resource: string,
    name: string,
    region: string | undefined,
    settings: Settings,
    bucketPolicy: pulumi.Output<string>,
): KeptBucket {
    const bucket = privateBucket(resource, name, region, settings, bucketPolicy);
    const versioning = new aws.s3.BucketVersioning(resource, {
        bucket: bucket.bucket,
        region,
        versioningConfiguration: { status: "Enabled" },
    });
    // No rule here expires a current object. Which snapshots go is decided by Lifeboat's retention,
    // which knows what is proven and what the head names; a rule knows only ages, would delete data
    // under manifests that stand, and after a month without writes would have deleted every backup.
    // Lifeboat deletes current versions; these rules remove for good what it deleted.
    new aws.s3.BucketLifecycleConfiguration(
        resource,
        {
            bucket: bucket.bucket,
            region,
            rules: [
                {
                    // The longest that a backup may be configured to take is two days.
                    id: "abort-incomplete-uploads",
                    status: "Enabled",
                    filter: { prefix: "" },
                    abortIncompleteMultipartUpload: { daysAfterInitiation: 2 },
                },
                {
                    id: "remove-deleted-versions",
                    status: "Enabled",
                    filter: { prefix: "" },
                    noncurrentVersionExpiration: { noncurrentDays: settings.noncurrentDays },
                    // Only markers that hide nothing any more.
                    expiration: { expiredObjectDeleteMarker: true },
                },
            ],
        },
        { dependsOn: versioning },
    );
    return { bucket, versioning };
}

function privateBucket(
    resource: string,
    name: string,
    region: string | undefined,
    settings: Settings,
    bucketPolicy: pulumi.Output<string>,
): aws.s3.Bucket {
    const bucket = new aws.s3.Bucket(
        resource,
        { bucket: name, region, forceDestroy: false, tags: tags(settings) },
        { protect: settings.protect },
    );
    const access = new aws.s3.BucketPublicAccessBlock(resource, {
        bucket: bucket.bucket,
        region,
        blockPublicAcls: true,
        blockPublicPolicy: true,
        ignorePublicAcls: true,
        restrictPublicBuckets: true,
    });
    new aws.s3.BucketOwnershipControls(resource, {
        bucket: bucket.bucket,
        region,
        rule: { objectOwnership: "BucketOwnerPreferred" },
    });
    new aws.s3.BucketServerSideEncryptionConfiguration(resource, {
        bucket: bucket.bucket,
        region,
        rules: [{ applyServerSideEncryptionByDefault: { sseAlgorithm: "AES256" } }],
    });
    // One change of a bucket's access at a time: S3 refuses the second.
    new aws.s3.BucketPolicy(resource, { bucket: bucket.bucket, region, policy: bucketPolicy }, { dependsOn: access });
    return bucket;
}

function accessLogs(bucket: aws.s3.Bucket, settings: Settings, filled: Filled): aws.s3.Bucket {
    const logs = privateBucket(
        "access-logs",
        settings.bucketName + LOGS_SUFFIX,
        undefined,
        settings,
        filled("log-bucket-policy"),
    );
    new aws.s3.BucketLifecycleConfiguration("access-logs", {
        bucket: logs.bucket,
        rules: [
            { id: "expire-logs", status: "Enabled", filter: { prefix: "" }, expiration: { days: LOG_DAYS } },
        ],
    });
    new aws.s3.BucketLogging("backups", { bucket: bucket.bucket, targetBucket: logs.bucket, targetPrefix: "s3/" });
    return logs;
}

/** Everything goes to the replica, deletions as markers: so pruning holds there too, and can be undone as long. */
function replicate(
    source: KeptBucket,
    replica: KeptBucket,
    name: string,
    filled: Filled,
    boundary: pulumi.Output<string> | undefined,
): void {
    const role = new aws.iam.Role("replication", {
        name,
        assumeRolePolicy: filled("replication-trust-policy"),
        permissionsBoundary: boundary,
    });
    const rights = new aws.iam.RolePolicy("replication", {
        role: role.name,
        name: "replication",
        policy: filled("replication-policy"),
    });
    new aws.s3.BucketReplicationConfig(
        "backups",
        {
            bucket: source.bucket.bucket,
            role: role.arn,
            rules: [
                {
                    id: "everything",
                    status: "Enabled",
                    priority: 1,
                    filter: { prefix: "" },
                    deleteMarkerReplication: { status: "Enabled" },
                    destination: { bucket: replica.bucket.arn, storageClass: "STANDARD" },
                },
            ],
        },
        { dependsOn: [source.versioning, replica.versioning, rights] },
    );
}

/** An account has one provider for each issuer, so a second stack refers to the one there is. */
function flyProvider(
    settings: Settings,
    accountId: pulumi.Output<string>,
    partition: pulumi.Output<string>,
): pulumi.Output<string> {
    const issuer = `oidc.fly.io/${settings.flyOrgSlug}`;
    if (!settings.createFlyOidcProvider) {
        return pulumi.interpolate`arn:${partition}:iam::${accountId}:oidc-provider/${issuer}`;
    }
    // No thumbprints: AWS checks the certificate against the authorities it knows.
    const provider = new aws.iam.OpenIdConnectProvider(
        "fly",
        { url: `https://${issuer}`, clientIdLists: ["sts.amazonaws.com"] },
        // The other stacks' roles stop working without it, so it outlives this one.
        { retainOnDelete: true },
    );
    return provider.arn;
}

/**
 * No manifest was written for hours. A snapshot exists once its manifest does, and each is one
 * PutObject; counting all uploads would count records that are written without a backup.
 */
function alarm(bucket: aws.s3.Bucket, role: string, settings: Settings): pulumi.Output<string> | undefined {
    const manifests = new aws.s3.BucketMetric("snapshots", {
        bucket: bucket.bucket,
        name: "Snapshots",
        filter: { prefix: `${settings.prefix}${settings.databaseName}/manifests/` },
    });
    const topic =
        settings.alarmEmail === undefined ? undefined : new aws.sns.Topic("alarms", { name: `${role}-alarms` });
    if (topic !== undefined) {
        new aws.sns.TopicSubscription("alarms", {
            topic: topic.arn,
            protocol: "email",
            endpoint: settings.alarmEmail as string,
        });
    }
    const actions = topic === undefined ? [] : [topic.arn];
    new aws.cloudwatch.MetricAlarm("no-snapshot", {
        name: `${role}-no-snapshot`,
        alarmDescription: `No snapshot of ${settings.databaseName} reached ${settings.bucketName} for ${settings.alarmHours} hours`,
        namespace: "AWS/S3",
        metricName: "PutRequests",
        dimensions: { BucketName: bucket.bucket, FilterId: manifests.name },
        statistic: "Sum",
        period: 3600,
        evaluationPeriods: settings.alarmHours,
        datapointsToAlarm: settings.alarmHours,
        comparisonOperator: "LessThanThreshold",
        threshold: 1,
        // Without requests there is no metric at all, which is just what must not go unnoticed.
        treatMissingData: "breaching",
        alarmActions: actions,
        okActions: actions,
        tags: tags(settings),
    });
    return topic?.arn;
}

function tags(settings: Settings): Record<string, string> {
    return { project: "sqlite-backup-restore", environment: settings.environment };
}
