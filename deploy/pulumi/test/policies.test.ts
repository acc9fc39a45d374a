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
const EVERYTHING = {
    s3Prefix: "six/prod",
    appendOnlyRole: "true",
    drillFlyAppName: "my-drill",
    accessLogging: "true",
    replicaRegion: "eu-west-1",
};

test("every policy of a stack is its file, filled in", async () => {
    const { one, all } = await deploy("prod", EVERYTHING);
    const found = {
        "role-policy": one("RolePolicy", "backup-restore").inputs.policy,
        "append-only-policy": one("RolePolicy", "append-only").inputs.policy,
        "read-only-policy": one("RolePolicy", "read-only").inputs.policy,
        "operator-trust-policy": one("Role", "backup-restore").inputs.assumeRolePolicy,
        "replication-policy": one("RolePolicy", "replication").inputs.policy,
        "replication-trust-policy": one("Role", "replication").inputs.assumeRolePolicy,
        "bucket-policy": one("BucketPolicy", "backups").inputs.policy,
        "log-bucket-policy": one("BucketPolicy", "access-logs").inputs.policy,
    };
    for (const [name, text] of Object.entries(found)) {
        assert.deepEqual(JSON.parse(text), expected(name, VALUES), name);
    }
    for (const [name, app] of [["append-only", "my-app"], ["read-only", "my-drill"]] as const) {
        const trust = JSON.parse(one("Role", name).inputs.assumeRolePolicy);
        assert.deepEqual(trust, expected("fly-trust-policy", { ...VALUES, app }), name);
    }
    const replica = JSON.parse(one("BucketPolicy", "replica").inputs.policy);
    assert.deepEqual(replica, expected("bucket-policy", { ...VALUES, bucket: VALUES.replica_bucket }));
    // All of them were looked at.
    assert.equal(all("RolePolicy").length + all("Role").length + all("BucketPolicy").length, 4 + 4 + 3);
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

test("beside an append-only role, the full one is for the account's principals and for no machine's session", async () => {
    const { one } = await deploy("prod", { appendOnlyRole: "true" });
    assert.deepEqual(JSON.parse(one("Role", "backup-restore").inputs.assumeRolePolicy).Statement, [
        {
            Sid: "TrustThisAccountAndNoMachine",
            Effect: "Allow",
            Principal: { AWS: `arn:aws:iam::${ACCOUNT}:root` },
            Action: "sts:AssumeRole",
            // A session without any identity provider, or of another one, matches too: a person's.
            Condition: {
                StringNotLike: { "aws:FederatedProvider": `arn:aws:iam::${ACCOUNT}:oidc-provider/oidc.fly.io/*` },
            },
        },
    ]);
    // To trust an account is to trust whom it lets assume roles, which is none of ours.
    const assuming = NAMES.flatMap(statements).filter(({ Resource, Action }) =>
        list(Action).some((action) => Resource !== undefined && action.startsWith("sts:")),
    );
    assert.deepEqual(assuming, []);
});

test("the role for drills reads, and nothing else", async () => {
    const { one } = await deploy("prod", { s3Prefix: "six", drillFlyAppName: "my-drill" });
    assert.deepEqual(JSON.parse(one("RolePolicy", "read-only").inputs.policy).Statement, [
        { Sid: "ListTheBucket", Effect: "Allow", Action: "s3:ListBucket", Resource: `arn:aws:s3:::${BUCKET}` },
        { Sid: "ReadBackups", Effect: "Allow", Action: "s3:GetObject", Resource: `arn:aws:s3:::${BUCKET}/six/*` },
    ]);
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

/** Whether a resource of a policy covers this one. */
function covers(resource: string, arn: string): boolean {
    const literal = resource.split("*").map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    return new RegExp(`^${literal.join(".*")}$`, "s").test(arn);
}

test("GitHub's roles reach neither each other, nor the boundary, nor an identity provider but fly.io's", () => {
    const iam = "arn:{{partition}}:iam::{{account}}";
    const guarded = [
        `${iam}:role/six-disc-changer-github-deploy`,
        `${iam}:role/six-disc-changer-github-preview`,
        `${iam}:policy/six-disc-changer-backup-boundary`,
        `${iam}:oidc-provider/token.actions.githubusercontent.com`,
        `${iam}:user/somebody`,
    ];
    for (const name of ["github-deploy-policy", "github-preview-policy"]) {
        const ofIam = statements(name).filter(({ Action }) => list(Action).some((action) => action.startsWith("iam:")));
        assert.ok(ofIam.some(({ Resource }) => covers(list(Resource)[0]!, `${iam}:role/six-disc-changer-backup-restore-dev`)));
        for (const { Sid, Resource } of ofIam) {
            for (const arn of guarded) assert.ok(!list(Resource).some((one) => covers(one, arn)), `${name} ${Sid} ${arn}`);
        }
    }
});

test("what GitHub may do in IAM is this, and nothing that detaches, attaches or versions a policy", () => {
    const ofIam = actions("github-deploy-policy").filter((action) => action.startsWith("iam:"));
    assert.deepEqual(ofIam.sort(), [
        "iam:AddClientIDToOpenIDConnectProvider",
        "iam:CreateOpenIDConnectProvider",
        "iam:CreateRole",
        "iam:DeleteRole",
        "iam:DeleteRolePolicy",
        "iam:ListInstanceProfilesForRole",
        "iam:PassRole",
        "iam:PutRolePermissionsBoundary",
        "iam:PutRolePolicy",
        "iam:RemoveClientIDFromOpenIDConnectProvider",
        "iam:TagOpenIDConnectProvider",
        "iam:TagRole",
        "iam:UntagOpenIDConnectProvider",
        "iam:UntagRole",
        "iam:UpdateAssumeRolePolicy",
        "iam:UpdateRole",
        "iam:UpdateRoleDescription",
    ]);
});

test("GitHub's own rights end at the state's objects: no backup, and no secret of another service", () => {
    const objects = /^s3:(Get|Put|Delete|List|Restore|Replicate)\w*(Object(?!Lock)|Parts)/;
    for (const name of ["github-deploy-policy", "github-preview-policy"]) {
        for (const { Sid, Action, Resource } of statements(name)) {
            if (!list(Action).some((action) => objects.test(action))) continue;
            assert.deepEqual(list(Resource), ["arn:{{partition}}:s3:::{{state_bucket}}/*"], `${name} ${Sid}`);
        }
        const services = new Set(actions(name).map((action) => action.split(":")[0]));
        assert.deepEqual([...services].sort(), ["cloudwatch", "iam", "s3", "sns"], name);
    }
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
        `github-deploy-policy HandReplicationItsRole iam::${account}:role/${ours}-replication`,
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
        "read-only-policy ReadBackups s3:::{{bucket}}/{{prefix}}*",
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
    const roles = ["role-policy", "append-only-policy", "read-only-policy", "replication-policy"];
    assert.deepEqual(actions("boundary-policy").sort(), [...new Set(roles.flatMap(actions))].sort());
});

test("the deployment's names are the program's", async () => {
    const { all } = await deploy("prod", { ...EVERYTHING, alarmEmail: "ops@example.org" });
    const named = ["Role", "MetricAlarm", "Topic"].flatMap(all);
    assert.equal(named.length, 6);
    for (const { type, inputs } of named) assert.match(inputs.name, /^six-disc-changer-backup-restore-/, type);
    assert.match(all("Role").find(({ name }) => name === "replication")?.inputs.name, /-replication$/);
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
