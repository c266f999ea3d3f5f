"""The fields of KubeRay's resources, as JSON schemas in which an unknown field is an error.

Field names, types and choices are those of the `ray.io/v1` API reference (ray-project/kuberay, docs/reference/api.md)
and, for `authOptions`, of the same page at release 1.5. The published CRDs are over a megabyte each, most of it the pod
template, which the Kubernetes schemas of the package `kubernetes-validate` check instead. What a cluster itself says:
`kubectl apply --dry-run=server -f cluster/k8s/rayjob.yaml`.
"""

BOOLEAN, INTEGER, NUMBER, STRING, OBJECT = ({"type": t} for t in ("boolean", "integer", "number", "string", "object"))
STRINGS = {"type": "object", "additionalProperties": STRING}
COUNT = {"type": "integer", "minimum": 0}


def fields(required=(), **properties):
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def one_of(*values):
    return {"type": "string", "enum": list(values)}


HEAD_GROUP = fields(
    required=("template",),
    template=OBJECT,
    headService=OBJECT,
    enableIngress=BOOLEAN,
    rayStartParams=STRINGS,
    serviceType=STRING,
)
WORKER_GROUP = fields(
    required=("groupName", "template"),
    suspend=BOOLEAN,
    groupName=STRING,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=COUNT,
    rayStartParams=STRINGS,
    template=OBJECT,
    scaleStrategy=fields(workersToDelete={"type": "array", "items": STRING}),
    numOfHosts=INTEGER,
)
CREDENTIAL = fields(valueFrom=OBJECT, value=STRING)
CLUSTER = fields(
    required=("headGroupSpec",),
    suspend=BOOLEAN,
    managedBy=STRING,
    authOptions=fields(mode=one_of("disabled", "token")),
    autoscalerOptions=OBJECT,
    headServiceAnnotations=STRINGS,
    enableInTreeAutoscaling=BOOLEAN,
    gcsFaultToleranceOptions=fields(
        redisUsername=CREDENTIAL, redisPassword=CREDENTIAL, externalStorageNamespace=STRING, redisAddress=STRING
    ),
    headGroupSpec=HEAD_GROUP,
    rayVersion=STRING,
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP},
)
JOB = fields(
    activeDeadlineSeconds={"type": "integer", "exclusiveMinimum": 0},
    backoffLimit=COUNT,
    rayClusterSpec=CLUSTER,
    submitterPodTemplate=OBJECT,
    metadata=STRINGS,
    clusterSelector=STRINGS,
    submitterConfig=fields(backoffLimit=COUNT),
    managedBy=STRING,
    deletionStrategy=OBJECT,
    entrypoint=STRING,
    runtimeEnvYAML=STRING,
    jobId=STRING,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    entrypointResources=STRING,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    ttlSecondsAfterFinished=COUNT,
    shutdownAfterJobFinishes=BOOLEAN,
    suspend=BOOLEAN,
)
SERVICE = fields(
    required=("serveConfigV2",),
    serveService=OBJECT,
    upgradeStrategy=fields(type=STRING),
    serveConfigV2=STRING,
    rayClusterConfig=CLUSTER,
    excludeHeadPodFromServeSvc=BOOLEAN,
)


def resource(kind, spec):
    return fields(
        required=("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=OBJECT,
        spec=spec,
    )


SCHEMAS = {"RayJob": resource("RayJob", JOB), "RayService": resource("RayService", SERVICE)}
