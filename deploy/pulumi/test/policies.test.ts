// The policy files against what the stacks would hold, and against what they may say at all.

import assert from "node:assert/strict";
import * as fs from "node:fs";
import * as path from "node:path";
import test from "node:test";

import { policy } from "../policies";
import { ACCOUNT, POLICIES, deploy } from "./harness";

interface Statement {
    Sid: string;
    Effect: "Allow" | "Deny";
    Action: string | string[];
    Resource?: string | string[];
    Principal?: unknown;
    Condition?: unknown;
}

const NAMES = fs.readdirSync(POLICIES).map((file) => path.basename(file, ".json"));

function raw(name: string): string {
    return fs.readFileSync(path.join(POLICIES, `${name}.json`), "utf8");
}

function statements(name: string): Statement[] {
    return JSON.parse(raw(name)).Statement;
}

function list<T>(one: T | T[] | undefined): T[] {
    return one === undefined ? [] : Array.isArray(one) ? one : [one];
}

function actions(name: string): string[] {
    return statements(name).flatMap((statement) => list(statement.Action));
}

/** A file with its placeholders replaced by plain text: not by the program's own code. */
function expected(name: string, values: Record<string, string>): unknown {
    const text = Object.entries(values).reduce((text, [key, value]) => text.replaceAll(`{{${key}}}`, value), raw(name));
    assert.doesNotMatch(text, /\{\{/);
    return JSON.parse(text);
}

const BUCKET = "6-disc-changer-prod-sqlite-backups";
const VALUES = {
    partition: "aws",
    account: ACCOUNT,
    bucket: BUCKET,
    prefix: "six/prod/",
    org: "my-org",
    app: "my-app",
    log_bucket: `${BUCKET}-logs`,
    replica_bucket: `${BUCKET}-replica`,
};
const EVERYTHING = { s3Prefix: "six/prod", appendOnlyRole: "true", accessLogging: "true", replicaRegion: "eu-west-1" };

test("every policy of a stack is its file, filled in", async () => {
    const { one, all } = await deploy("prod", EVERYTHING);
    const found = {
        "role-policy": one("RolePolicy", "backup-restore").inputs.policy,
        "append-only-policy": one("RolePolicy", "append-only").inputs.policy,
        "replication-policy": one("RolePolicy", "replication").inputs.policy,
        "replication-trust-policy": one("Role", "replication").inputs.assumeRolePolicy,
        "bucket-policy": one("BucketPolicy", "backups").inputs.policy,
        "log-bucket-policy": one("BucketPolicy", "access-logs").inputs.policy,
    };
    for (const [name, text] of Object.entries(found)) {
        assert.deepEqual(JSON.parse(text), expected(name, VALUES), name);
    }
    for (const name of ["backup-restore", "append-only"]) {
        const trust = JSON.parse(one("Role", name).inputs.assumeRolePolicy);
        assert.deepEqual(trust, expected("fly-trust-policy", VALUES), name);
    }
    const replica = JSON.parse(one("BucketPolicy", "replica").inputs.policy);
    assert.deepEqual(replica, expected("bucket-policy", { ...VALUES, bucket: VALUES.replica_bucket }));
    // All of them were looked at.
    assert.equal(all("RolePolicy").length + all("Role").length + all("BucketPolicy").length, 3 + 3 + 3);
});

test("the trust is pinned to the organisation and the application", async () => {
    const { one } = await deploy("dev");
    assert.deepEqual(JSON.parse(one("Role").inputs.assumeRolePolicy).Statement, [
        {
            Sid: "TrustOneFlyApplication",
            Effect: "Allow",
            Principal: { Federated: `arn:aws:iam::${ACCOUNT}:oidc-provider/oidc.fly.io/my-org` },
            Action: "sts:AssumeRoleWithWebIdentity",
            Condition: {
                StringEquals: { "oidc.fly.io/my-org:aud": "sts.amazonaws.com" },
                StringLike: { "oidc.fly.io/my-org:sub": "my-org:my-app:*" },
            },
        },
    ]);
});

test("the role may do what its documents say, on its bucket, below its prefix", async () => {
    const { one } = await deploy("prod", { s3Prefix: "six" });
    assert.deepEqual(JSON.parse(one("RolePolicy").inputs.policy).Statement, [
        {
            Sid: "ListTheBucket",
            Effect: "Allow",
            Action: ["s3:ListBucket", "s3:ListBucketMultipartUploads"],
            Resource: `arn:aws:s3:::${BUCKET}`,
        },
        {
            Sid: "ReadWriteAndPruneBackups",
            Effect: "Allow",
            Action: ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
            Resource: `arn:aws:s3:::${BUCKET}/six/*`,
        },
    ]);
});

test("the append-only role deletes nothing and overwrites no backup", async () => {
    const { one } = await deploy("prod", { appendOnlyRole: "true" });
    const [, , deny, ...others] = JSON.parse(one("RolePolicy", "append-only").inputs.policy).Statement;
    assert.deepEqual(others, []);
    // UploadPart carries no condition and creates no object: only what completes one is denied.
    assert.deepEqual(deny, {
        Sid: "NeverOverwriteWhatIsStored",
        Effect: "Deny",
        Action: "s3:PutObject",
        Resource: ["snapshots/*", "manifests/*", "epochs/*", "identity.json"].map(
            (kind) => `arn:aws:s3:::${BUCKET}/*/${kind}`,
        ),
        Condition: { Null: { "s3:if-none-match": "true" }, Bool: { "s3:ObjectCreationOperation": "true" } },
    });
    const missing = actions("role-policy").filter((action) => !actions("append-only-policy").includes(action));
    assert.deepEqual(missing, ["s3:DeleteObject"]);
});

test("every bucket refuses what does not come over TLS", () => {
    for (const [name, bucket] of [["bucket-policy", "bucket"], ["log-bucket-policy", "log_bucket"]] as const) {
        assert.deepEqual(statements(name)[0], {
            Sid: "OnlyOverTls",
            Effect: "Deny",
            Principal: "*",
            Action: "s3:*",
            Resource: [`arn:{{partition}}:s3:::{{${bucket}}}`, `arn:{{partition}}:s3:::{{${bucket}}}/*`],
            Condition: { Bool: { "aws:SecureTransport": "false" } },
        });
    }
});

test("services are trusted for our own bucket in our own account only", () => {
    const ours = {
        StringEquals: { "aws:SourceAccount": "{{account}}" },
        ArnEquals: { "aws:SourceArn": "arn:{{partition}}:s3:::{{bucket}}" },
    };
    const [, logs, ...others] = statements("log-bucket-policy");
    const [replication, ...more] = statements("replication-trust-policy");
    assert.deepEqual([others, more], [[], []]);
    assert.deepEqual(logs?.Principal, { Service: "logging.s3.amazonaws.com" });
    assert.deepEqual([logs?.Action, logs?.Condition], ["s3:PutObject", ours]);
    assert.deepEqual(replication?.Principal, { Service: "s3.amazonaws.com" });
    assert.deepEqual([replication?.Action, replication?.Condition], ["sts:AssumeRole", ours]);
});

test("GitHub is trusted by audience and subject", () => {
    const [trust, ...others] = statements("github-trust-policy");
    assert.deepEqual(others, []);
    assert.equal(trust?.Action, "sts:AssumeRoleWithWebIdentity");
    assert.deepEqual(trust?.Condition, {
        StringEquals: { "token.actions.githubusercontent.com:aud": "sts.amazonaws.com" },
        StringLike: { "token.actions.githubusercontent.com:sub": ["{{subjects}}"] },
    });
});

test("the deployment gives no role more than the boundary allows", () => {
    const boundary = "arn:{{partition}}:iam::{{account}}:policy/six-disc-changer-backup-boundary";
    // Whatever could give a role a right, or take its boundary away.
    const widening = /^iam:(CreateRole|(Put|Delete|Attach|Detach)RolePolicy|(Put|Delete)RolePermissionsBoundary)$/;
    for (const { Sid, Action, Condition } of statements("github-deploy-policy")) {
        if (!list(Action).some((action) => widening.test(action))) continue;
        assert.deepEqual(Condition, { StringEquals: { "iam:PermissionsBoundary": boundary } }, Sid);
        assert.ok(!list(Action).includes("iam:DeleteRolePermissionsBoundary"));
    }
    const passed = statements("github-deploy-policy").filter(({ Action }) => list(Action).includes("iam:PassRole"));
    assert.deepEqual(
        passed.map(({ Condition }) => Condition),
        [{ StringEquals: { "iam:PassedToService": "s3.amazonaws.com" } }],
    );
});

test("nobody removes versions for good, or a bucket", () => {
    const grave = /^(s3:(DeleteObjectVersion|DeleteBucket|BypassGovernanceRetention)|iam:(Attach|.*AccessKey|.*User).*|.*:\*)$/;
    for (const name of NAMES) {
        for (const { Sid, Effect, Action } of statements(name)) {
            if (Effect === "Deny") continue;
            assert.deepEqual(list(Action).filter((action) => grave.test(action)), [], `${name} ${Sid}`);
        }
    }
});

test("the only wildcards are these", () => {
    const found = NAMES.flatMap((name) =>
        statements(name).flatMap(({ Sid, Action, Resource, Principal }) =>
            [...list(Action), ...list(Resource), JSON.stringify(Principal ?? "")]
                .filter((text) => text.includes("*"))
                .map((text) => `${name} ${Sid} ${text.replace("arn:{{partition}}:", "")}`),
        ),
    );
    const account = "{{account}}";
    const ours = "six-disc-changer-backup-restore-*";
    assert.deepEqual(found.sort(), [
        "append-only-policy NeverOverwriteWhatIsStored s3:::{{bucket}}/{{prefix}}*/epochs/*",
        "append-only-policy NeverOverwriteWhatIsStored s3:::{{bucket}}/{{prefix}}*/identity.json",
        "append-only-policy NeverOverwriteWhatIsStored s3:::{{bucket}}/{{prefix}}*/manifests/*",
        "append-only-policy NeverOverwriteWhatIsStored s3:::{{bucket}}/{{prefix}}*/snapshots/*",
        "append-only-policy ReadAndWriteBackups s3:::{{bucket}}/{{prefix}}*",
        'bucket-policy OnlyOverTls "*"',
        "bucket-policy OnlyOverTls s3:*",
        "bucket-policy OnlyOverTls s3:::{{bucket}}/*",
        `github-deploy-policy HandReplicationItsRole iam::${account}:role/${ours}`,
        `github-deploy-policy WriteAlarms cloudwatch:*:${account}:alarm:${ours}`,
        `github-deploy-policy WriteRoles iam::${account}:role/${ours}`,
        `github-deploy-policy WriteRolesWithinTheBoundary iam::${account}:role/${ours}`,
        `github-deploy-policy WriteTheFlyProvider iam::${account}:oidc-provider/oidc.fly.io/*`,
        "github-deploy-policy WriteTheState s3:::{{state_bucket}}/*",
        `github-deploy-policy WriteTopics sns:*:${account}:${ours}`,
        `github-preview-policy ReadAlarms cloudwatch:*:${account}:alarm:${ours}`,
        `github-preview-policy ReadRoles iam::${account}:role/${ours}`,
        // AWS knows no resource for this action.
        "github-preview-policy ReadSubscriptions *",
        `github-preview-policy ReadTheFlyProvider iam::${account}:oidc-provider/oidc.fly.io/*`,
        "github-preview-policy ReadTheState s3:::{{state_bucket}}/*",
        `github-preview-policy ReadTopics sns:*:${account}:${ours}`,
        'log-bucket-policy OnlyOverTls "*"',
        "log-bucket-policy AccessLogsOfTheBackups s3:::{{log_bucket}}/*",
        "log-bucket-policy OnlyOverTls s3:*",
        "log-bucket-policy OnlyOverTls s3:::{{log_bucket}}/*",
        "replication-policy ReadWhatIsReplicated s3:::{{bucket}}/*",
        "replication-policy WriteTheReplica s3:::{{replica_bucket}}/*",
        "role-policy ReadWriteAndPruneBackups s3:::{{bucket}}/{{prefix}}*",
    ].sort());
    // What everybody is named for is a denial.
    for (const name of ["bucket-policy", "log-bucket-policy"]) {
        for (const { Principal, Effect } of statements(name)) {
            if (Principal === "*") assert.equal(Effect, "Deny", name);
        }
    }
});

test("the boundary lets every role of ours do its work, and nothing more", () => {
    const roles = ["role-policy", "append-only-policy", "replication-policy"];
    assert.deepEqual(actions("boundary-policy").sort(), [...new Set(roles.flatMap(actions))].sort());
});

test("the deployment's names are the program's", async () => {
    const { all } = await deploy("prod", { ...EVERYTHING, alarmEmail: "ops@example.org" });
    const named = ["Role", "MetricAlarm", "Topic"].flatMap(all);
    assert.equal(named.length, 5);
    for (const { type, inputs } of named) assert.match(inputs.name, /^six-disc-changer-backup-restore-/, type);
});

test("what only reads is for previews", () => {
    const writes = /:(Put|Delete|Create|Update|Add|Remove|Tag|Untag|Set|Subscribe|Pass|Attach|Abort)/;
    assert.deepEqual(actions("github-preview-policy").filter((action) => writes.test(action)), []);
    const alsoReads = actions("github-deploy-policy").filter((action) => !writes.test(action));
    assert.deepEqual(alsoReads, ["iam:ListInstanceProfilesForRole"], "of deleting a role");
});

test("a list takes the place of an element, and a value that is missing is an error", () => {
    const subjects = ["repo:o/r:ref:refs/heads/main", "repo:o@1/r@2:ref:refs/heads/main"];
    const filled = JSON.parse(policy(POLICIES, "github-trust-policy", { ...VALUES, subjects }));
    assert.deepEqual(
        filled.Statement[0].Condition.StringLike["token.actions.githubusercontent.com:sub"],
        subjects,
    );
    assert.throws(() => policy(POLICIES, "role-policy", { partition: "aws" }), /role-policy\.json: no value for \{\{bucket\}\}/);
});
