"""The fields an object of the JobSet API may have, as far as launch/jobset.yaml goes down.

From the published references: jobset.x-k8s.io/v1alpha2 of JobSet 0.10 (JobSetSpec, FailurePolicy, FailurePolicyRule,
ReplicatedJob, Network) and Kubernetes 1.31 (JobSpec, PodFailurePolicy, PodSpec, Container).
A dict: an object with these fields; a list: a list of these; a type or a set: a value of that type, or one of these.
"""

TEXTS = dict[str, str]
_METADATA = {"name": str, "namespace": str, "labels": TEXTS, "annotations": TEXTS, "generateName": str}
_CONTAINER = {
    "name": str, "image": str, "command": [str], "args": [str], "workingDir": str,
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "env": [{"name": str, "value": str, "valueFrom": object}],
    "ports": [{"containerPort": int, "name": str, "protocol": {"TCP", "UDP"}, "hostPort": int, "hostIP": str}],
    "resources": {"requests": dict, "limits": dict},
    "volumeMounts": [{"name": str, "mountPath": str, "subPath": str, "readOnly": bool}],
    "securityContext": {"privileged": bool, "allowPrivilegeEscalation": bool, "capabilities": object},
}  # fmt: skip
_POD = {
    "restartPolicy": {"Never"},  # what a podFailurePolicy requires
    "terminationGracePeriodSeconds": int, "nodeSelector": TEXTS, "serviceAccountName": str, "hostNetwork": bool,
    "securityContext": {"runAsNonRoot": bool, "runAsUser": int, "runAsGroup": int, "fsGroup": int},
    "dnsPolicy": str, "priorityClassName": str, "schedulerName": str, "subdomain": str,
    "tolerations": [{"key": str, "operator": {"Exists", "Equal"}, "value": str, "effect": str}],
    "containers": [_CONTAINER], "initContainers": [_CONTAINER],
    "volumes": [{
        "name": str, "emptyDir": {"medium": str, "sizeLimit": str}, "hostPath": {"path": str, "type": str},
        "persistentVolumeClaim": {"claimName": str, "readOnly": bool}, "nfs": {"server": str, "path": str},
        "csi": object,
    }],
}  # fmt: skip
_JOB = {
    "parallelism": int, "completions": int, "completionMode": {"Indexed"}, "backoffLimit": int, "suspend": bool,
    "activeDeadlineSeconds": int, "ttlSecondsAfterFinished": int, "podReplacementPolicy": {"Failed"},
    "podFailurePolicy": {"rules": [{
        "action": {"FailJob", "FailIndex", "Ignore", "Count"},
        "onExitCodes": {"containerName": str, "operator": {"In", "NotIn"}, "values": [int]},
        "onPodConditions": [{"type": str, "status": {"True", "False", "Unknown"}}],
    }]},
    "template": {"metadata": _METADATA, "spec": _POD},
}  # fmt: skip
JOBSET = {
    "apiVersion": {"jobset.x-k8s.io/v1alpha2"},
    "kind": {"JobSet"},
    "metadata": _METADATA,
    "spec": {
        "replicatedJobs": [{
            "name": str, "groupName": str, "replicas": int,
            "dependsOn": [{"name": str, "status": {"Ready", "Complete"}}],
            "template": {"metadata": _METADATA, "spec": _JOB},
        }],
        "failurePolicy": {
            "maxRestarts": int, "restartStrategy": {"Recreate", "BlockingRecreate"},
            "rules": [{
                "name": str, "action": {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"},
                "onJobFailureReasons": [{"BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes",
                                         "MaxFailedIndexesExceeded", "PodFailurePolicy"}],
                "onJobFailureMessagePatterns": [str], "targetReplicatedJobs": [str],
            }],
        },
        "successPolicy": {"operator": {"All", "Any"}, "targetReplicatedJobs": [str]},
        "network": {"enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool},
        "coordinator": {"replicatedJob": str, "jobIndex": int, "podIndex": int},
        "managedBy": str, "suspend": bool, "ttlSecondsAfterFinished": int,
    },
}  # fmt: skip


def problems(found: object, wanted: object, where: str = "") -> list[str]:
    """What does not fit, each with its place: unknown fields, values of another type."""
    if wanted is TEXTS:
        fits = isinstance(found, dict) and all(isinstance(v, str) for v in found.values())
        return [] if fits else [f"{where}: not texts: {found!r}"]
    if isinstance(wanted, dict):
        if not isinstance(found, dict):
            return [f"{where}: not an object: {found!r}"]
        unknown = [f"{where}.{key}: no such field" for key in found.keys() - wanted.keys()]
        return unknown + [
            p for k in found.keys() & wanted.keys() for p in problems(found[k], wanted[k], f"{where}.{k}")
        ]
    if isinstance(wanted, list):
        if not isinstance(found, list):
            return [f"{where}: not a list: {found!r}"]
        return [p for i, item in enumerate(found) for p in problems(item, wanted[0], f"{where}[{i}]")]
    if isinstance(wanted, set):
        return [] if found in wanted else [f"{where}: {found!r} is none of {sorted(wanted)}"]
    fits = isinstance(found, wanted) and not (wanted is int and isinstance(found, bool))  # type: ignore[arg-type]
    return [] if fits else [f"{where}: {found!r} is no {wanted.__name__}"]  # type: ignore[attr-defined]
