import * as pulumi from "@pulumi/pulumi";

import { readSettings } from "./config";
import { createBackupInfra } from "./infra";

// Pulumi runs a program in the folder of its Pulumi.yaml.
const settings = readSettings(pulumi.getStack(), pulumi.runtime.allConfig());
const infra = createBackupInfra(settings, "../policies");

export const bucketName = infra.bucketName;
export const backupRestoreRoleArn = infra.backupRestoreRoleArn;
export const appendOnlyRoleArn = infra.appendOnlyRoleArn;
export const readOnlyRoleArn = infra.readOnlyRoleArn;
export const flyOidcProviderArn = infra.flyOidcProviderArn;
export const replicaBucketName = infra.replicaBucketName;
export const logBucketName = infra.logBucketName;
export const alarmTopicArn = infra.alarmTopicArn;
