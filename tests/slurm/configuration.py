"""What the private Slurm is configured as: two nodes, GPUs that are numbers, and the sites that documents name."""

CONFIGURATION = """ClusterName=cmbert
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
JobRequeue=1
KillWait={kill_wait}
MinJobAge=3600
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=300
UnkillableStepTimeout=60
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 Gres=gpu:2 RealMemory=4000\n"
GPUS = "NodeName=n[1-2] Name=gpu File={root}/gpu[0-1] Flags=nvidia_gpu_env\n"
# Sites that documents speak of, as nodes that a cloud would start: no program runs there, but Slurm plans with them.
SITES = """SuspendTime=-1
SuspendProgram=/bin/true
ResumeProgram=/bin/true
NodeName=big[1-8] CPUs=64 Gres=gpu:8 RealMemory=1000000 Features=h100 State=CLOUD
NodeName=four[1-14] CPUs=32 Gres=gpu:4 RealMemory=500000 State=CLOUD
NodeName=plain[1-2] CPUs=32 RealMemory=250000 State=CLOUD
PartitionName=big Nodes=big[1-8] State=UP
PartitionName=four Nodes=four[1-14] State=UP
PartitionName=plain Nodes=plain[1-2] State=UP
"""
SITES_GPUS = "NodeName=big[1-8] Name=gpu Count=8\nNodeName=four[1-14] Name=gpu Count=4\n"
PARTITIONS = """PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""
