#Requires -Version 5.1
<#
.SYNOPSIS
Registers mt5-server as a task that starts when you log on to this Windows machine, and starts it.
.DESCRIPTION
The terminal is a desktop program, so the server must run in the same session as it does: see README.md beside this file.
Run this in an elevated PowerShell of the account that runs the terminal; -Remove takes everything away again.
.EXAMPLE
.\install.ps1 -Python C:\btcbot\.venv\Scripts\python.exe -Config C:\btcbot\mt5_server.toml -Port 8443
#>
[CmdletBinding(DefaultParameterSetName = 'Install')]
param(
    [Parameter(Mandatory, ParameterSetName = 'Install')] [string] $Python,
    [Parameter(Mandatory, ParameterSetName = 'Install')] [string] $Config,
    [Parameter(ParameterSetName = 'Install')] [string] $Log = (Join-Path $env:LOCALAPPDATA 'btcbot\mt5-server.log'),
    [Parameter(ParameterSetName = 'Install')] [int] $Port = 0,
    [Parameter(ParameterSetName = 'Install')] [string] $From = 'LocalSubnet',
    [Parameter(Mandatory, ParameterSetName = 'Remove')] [switch] $Remove,
    [string] $Name = 'mt5-server'
)
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version Latest

if ($Remove) {
    Stop-ScheduledTask -TaskName $Name -ErrorAction SilentlyContinue
    Unregister-ScheduledTask -TaskName $Name -Confirm:$false -ErrorAction SilentlyContinue
    Remove-NetFirewallRule -Name $Name -ErrorAction SilentlyContinue
    Write-Output "$Name is removed. Its journals are kept."
    exit 0
}

foreach ($file in $Python, $Config) {
    if (-not (Test-Path -LiteralPath $file -PathType Leaf)) { throw "$file isn't there: give the full path of the file." }
}
$Python = (Resolve-Path -LiteralPath $Python).Path
$Config = (Resolve-Path -LiteralPath $Config).Path
New-Item -ItemType Directory -Force -Path (Split-Path -Parent $Log) | Out-Null
& $Python -m mt5_server --version
if ($LASTEXITCODE -ne 0) { throw "$Python doesn't run mt5_server: install btcbot[server,native] into its environment." }

# The configuration names certificates and the vault's key: nobody but this account, administrators and the system reads it.
& icacls.exe $Config /inheritance:r /grant:r "${env:USERDOMAIN}\${env:USERNAME}:(R,W)" 'SYSTEM:(F)' 'BUILTIN\Administrators:(F)' | Out-Null

# cmd appends the log as bytes; PowerShell hides the console window that a console program otherwise has.
$inner = "`"`"$Python`" -m mt5_server --config `"$Config`" >> `"$Log`" 2>&1`""
$arguments = "-NoProfile -NonInteractive -WindowStyle Hidden -Command `"cmd.exe /d /s /c '$inner'; exit `$LASTEXITCODE`""
$user = "$env:USERDOMAIN\$env:USERNAME"
$task = @{
    TaskName  = $Name
    Action    = New-ScheduledTaskAction -Execute 'powershell.exe' -Argument $arguments -WorkingDirectory (Split-Path -Parent $Config)
    Trigger   = New-ScheduledTaskTrigger -AtLogOn -User $user
    Principal = New-ScheduledTaskPrincipal -UserId $user -LogonType Interactive -RunLevel Limited
    Settings  = New-ScheduledTaskSettingsSet -ExecutionTimeLimit ([TimeSpan]::Zero) -RestartCount 999 -RestartInterval (New-TimeSpan -Minutes 1) `
        -MultipleInstances IgnoreNew -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries -Priority 4
    Description = 'MetaTrader 5 terminal over HTTP (mt5-server of btcbot)'
    Force     = $true
}
Register-ScheduledTask @task | Out-Null

if ($Port -gt 0) {
    Remove-NetFirewallRule -Name $Name -ErrorAction SilentlyContinue
    New-NetFirewallRule -Name $Name -DisplayName $Name -Direction Inbound -Protocol TCP -LocalPort $Port -RemoteAddress $From `
        -Program $Python -Action Allow | Out-Null
}
Start-ScheduledTask -TaskName $Name
Write-Output "$Name is registered for $user and starts now; its log is $Log"
