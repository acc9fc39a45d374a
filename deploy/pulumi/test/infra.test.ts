import assert from "node:assert/strict";
import test from "node:test";

import { ACCOUNT, deploy } from "./harness";

const STACKS = [
    { stack: "dev", region: "us-west-2", protect: false },
    { stack: "prod", region: "us-east-1", protect: true },
];

for (const { stack, region, protect } of STACKS) {
    test(`${stack} is what the documents promise`, async () => {
        const { outputs, one, all } = await deploy(stack, { region });
        const bucket = `6-disc-changer-${stack}-sqlite-backups`;

        assert.equal(outputs.bucketName, bucket);
        assert.equal(outputs.backupRestoreRoleArn, `arn:mock:Role/six-disc-changer-backup-restore-${stack}`);
        assert.equal(one("Bucket").inputs.bucket, bucket);
        assert.equal(one("Bucket").inputs.forceDestroy, false);
        assert.equal(one("Bucket").options.protect, protect);
        assert.equal(one("Role").inputs.name, `six-disc-changer-backup-restore-${stack}`);
        assert.equal(one("Role").inputs.maxSessionDuration, 3600);
        assert.equal(one("Role").inputs.permissionsBoundary, undefined);
        // No rule of a managed policy comes beside ours.
        assert.deepEqual(all("RolePolicyAttachment"), []);

        assert.deepEqual(one("BucketPublicAccessBlock").inputs, {
            bucket,
            blockPublicAcls: true,
            blockPublicPolicy: true,
            ignorePublicAcls: true,
            restrictPublicBuckets: true,
        });
        assert.deepEqual(one("BucketOwnershipControls").inputs.rule, { objectOwnership: "BucketOwnerPreferred" });
        assert.deepEqual(one("BucketServerSideEncryptionConfiguration").inputs.rules, [
            { applyServerSideEncryptionByDefault: { sseAlgorithm: "AES256" } },
        ]);
        assert.deepEqual(one("BucketVersioning").inputs.versioningConfiguration, { status: "Enabled" });
    });
}

test("lifecycle never expires a current object of a bucket that holds backups", async () => {
    const { all } = await deploy("prod", { replicaRegion: "eu-west-1", noncurrentDays: "14" });
    const lifecycles = all("BucketLifecycleConfiguration");
    assert.deepEqual(lifecycles.map((lifecycle) => lifecycle.name).sort(), ["backups", "replica"]);
    for (const { inputs } of lifecycles) {
        assert.deepEqual(inputs.rules, [
            {
                id: "abort-incomplete-uploads",
                status: "Enabled",
                filter: { prefix: "" },
                abortIncompleteMultipartUpload: { daysAfterInitiation: 2 },
            },
            {
                id: "remove-deleted-versions",
                status: "Enabled",
                filter: { prefix: "" },
                noncurrentVersionExpiration: { noncurrentDays: 14 },
                expiration: { expiredObjectDeleteMarker: true },
            },
        ]);
    }
});

test("the provider has no thumbprints, and outlives the stack that made it", async () => {
    const { one, outputs } = await deploy("dev");
    const provider = one("OpenIdConnectProvider");
    assert.deepEqual(provider.inputs, { url: "https://oidc.fly.io/my-org", clientIdLists: ["sts.amazonaws.com"] });
    assert.equal(provider.options.retainOnDelete, true);
    assert.equal(outputs.flyOidcProviderArn, "arn:mock:OpenIdConnectProvider/fly");
});

test("a second stack refers to the provider of the first", async () => {
    const { all, outputs } = await deploy("prod", { createFlyOidcProvider: "false" });
    assert.deepEqual(all("OpenIdConnectProvider"), []);
    assert.equal(outputs.flyOidcProviderArn, `arn:aws:iam::${ACCOUNT}:oidc-provider/oidc.fly.io/my-org`);
});

test("the alarm counts manifests, and silence is an alarm", async () => {
    const extra = { alarmHours: "30", alarmEmail: "ops@example.org", s3Prefix: "six", databaseName: "main" };
    const { one, all, outputs } = await deploy("prod", extra);
    assert.deepEqual(all("BucketMetric").map((metric) => [metric.inputs.name, metric.inputs.filter]), [
        ["EntireBucket", undefined],
        ["Snapshots", { prefix: "six/main/manifests/" }],
    ]);
    const topic = "arn:mock:Topic/six-disc-changer-backup-restore-prod-alarms";
    const { alarmDescription, tags, ...alarm } = one("MetricAlarm").inputs;
    assert.deepEqual(alarm, {
        name: "six-disc-changer-backup-restore-prod-no-snapshot",
        namespace: "AWS/S3",
        metricName: "PutRequests",
        dimensions: { BucketName: "6-disc-changer-prod-sqlite-backups", FilterId: "Snapshots" },
        statistic: "Sum",
        period: 3600,
        evaluationPeriods: 30,
        datapointsToAlarm: 30,
        comparisonOperator: "LessThanThreshold",
        threshold: 1,
        treatMissingData: "breaching",
        alarmActions: [topic],
        okActions: [topic],
    });
    assert.match(alarmDescription, /main .* for 30 hours/);
    assert.deepEqual(tags, { project: "sqlite-backup-restore", environment: "prod" });
    assert.equal(outputs.alarmTopicArn, topic);
    const { protocol, endpoint } = one("TopicSubscription").inputs;
    assert.deepEqual([protocol, endpoint], ["email", "ops@example.org"]);
});

test("an alarm without an address only shows", async () => {
    const { one, all, outputs } = await deploy("prod");
    assert.deepEqual(one("MetricAlarm").inputs.alarmActions, []);
    assert.deepEqual(all("Topic"), []);
    assert.equal(outputs.alarmTopicArn, undefined);
});

test("what is switched off is not there", async () => {
    const { resources, outputs } = await deploy("dev", { alarmHours: "0", requestMetrics: "false" });
    assert.deepEqual(
        resources.map(({ type, name }) => `${type.split(":").pop()} ${name}`).sort(),
        [
            "Bucket backups",
            "BucketLifecycleConfiguration backups",
            "BucketOwnershipControls backups",
            "BucketPolicy backups",
            "BucketPublicAccessBlock backups",
            "BucketServerSideEncryptionConfiguration backups",
            "BucketVersioning backups",
            "OpenIdConnectProvider fly",
            "Role backup-restore",
            "RolePolicy backup-restore",
        ],
    );
    assert.equal(outputs.appendOnlyRoleArn, undefined);
    assert.equal(outputs.readOnlyRoleArn, undefined);
    assert.equal(outputs.replicaBucketName, undefined);
    assert.equal(outputs.logBucketName, undefined);
});

test("the replica is a bucket like the first, in the second region", async () => {
    const { one, outputs } = await deploy("prod", { replicaRegion: "eu-west-1" });
    const name = "6-disc-changer-prod-sqlite-backups-replica";
    assert.equal(outputs.replicaBucketName, name);
    assert.equal(one("Bucket", "replica").options.protect, true);
    for (const type of [
        "Bucket",
        "BucketLifecycleConfiguration",
        "BucketOwnershipControls",
        "BucketPolicy",
        "BucketPublicAccessBlock",
        "BucketServerSideEncryptionConfiguration",
        "BucketVersioning",
    ]) {
        const { inputs } = one(type, "replica");
        assert.deepEqual([inputs.bucket, inputs.region], [name, "eu-west-1"], type);
    }
    const replication = one("BucketReplicationConfig").inputs;
    assert.equal(replication.bucket, "6-disc-changer-prod-sqlite-backups");
    assert.equal(replication.role, "arn:mock:Role/six-disc-changer-backup-restore-prod-replication");
    assert.deepEqual(replication.rules, [
        {
            id: "everything",
            status: "Enabled",
            priority: 1,
            filter: { prefix: "" },
            deleteMarkerReplication: { status: "Enabled" },
            destination: { bucket: "arn:mock:Bucket/replica", storageClass: "STANDARD" },
        },
    ]);
});

test("access logs go to a bucket of their own and expire there", async () => {
    const { one, outputs } = await deploy("prod", { accessLogging: "true" });
    const logs = "6-disc-changer-prod-sqlite-backups-logs";
    assert.equal(outputs.logBucketName, logs);
    assert.deepEqual(one("BucketLogging").inputs, {
        bucket: "6-disc-changer-prod-sqlite-backups",
        targetBucket: logs,
        targetPrefix: "s3/",
    });
    const [rule, ...others] = one("BucketLifecycleConfiguration", "access-logs").inputs.rules;
    assert.deepEqual([rule.expiration, others], [{ days: 90 }, []]);
    assert.equal(one("BucketPublicAccessBlock", "access-logs").inputs.blockPublicPolicy, true);
});

test("a machine finds exactly one role that trusts it, however the stack is configured", async () => {
    const base = "six-disc-changer-backup-restore-prod";
    const choices = ["false", "true"].flatMap((appendOnlyRole) =>
        ["", "my-drill"].flatMap((drillFlyAppName) =>
            ["", "eu-west-1"].map((replicaRegion) => ({ appendOnlyRole, drillFlyAppName, replicaRegion })),
        ),
    );
    assert.equal(choices.length, 8);
    for (const extra of choices) {
        const { all, outputs } = await deploy("prod", extra);
        const trusting = all("Role").flatMap(({ inputs }) =>
            JSON.parse(inputs.assumeRolePolicy)
                .Statement.filter((statement: any) => JSON.stringify(statement.Principal).includes("oidc.fly.io"))
                .map(({ Condition }: any) => [Condition.StringLike["oidc.fly.io/my-org:sub"], inputs.name]),
        );
        const chosen = extra.appendOnlyRole === "true" ? `${base}-append-only` : base;
        const drill = extra.drillFlyAppName === "" ? [] : [["my-org:my-drill:*", `${base}-read-only`]];
        assert.deepEqual(trusting.sort(), [["my-org:my-app:*", chosen], ...drill], JSON.stringify(extra));
        // The first output is the full role, whoever may have it.
        assert.equal(outputs.backupRestoreRoleArn, `arn:mock:Role/${base}`);
        assert.equal(outputs.appendOnlyRoleArn, chosen === base ? undefined : `arn:mock:Role/${chosen}`);
        assert.equal(outputs.readOnlyRoleArn, drill.length === 0 ? undefined : `arn:mock:Role/${base}-read-only`);
    }
});

test("with a boundary every role has it", async () => {
    const extra = {
        permissionsBoundary: "true",
        appendOnlyRole: "true",
        drillFlyAppName: "my-drill",
        replicaRegion: "eu-west-1",
    };
    const { all } = await deploy("prod", extra);
    assert.deepEqual(
        all("Role").map((role) => [role.inputs.name, role.inputs.permissionsBoundary]).sort(),
        ["", "-append-only", "-read-only", "-replication"].map((suffix) => [
            `six-disc-changer-backup-restore-prod${suffix}`,
            `arn:aws:iam::${ACCOUNT}:policy/six-disc-changer-backup-boundary`,
        ]),
    );
});
