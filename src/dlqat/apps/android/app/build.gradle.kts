plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
    id("org.jetbrains.kotlin.plugin.compose")
}

android {
    namespace = "org.dlqat.chat"
    compileSdk = 36
    defaultConfig {
        applicationId = "org.dlqat.chat"
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = "1.0"
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") } // what the AAR has
    }
    buildFeatures { compose = true }
    androidResources { noCompress += listOf("pte", "json") } // weights do not get smaller
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    kotlinOptions { jvmTarget = "17" }
}

dependencies {
    implementation("org.pytorch:executorch-android:1.0.1") // LlmModule; dlqat's files ran on ExecuTorch 1.0.1 to 1.5.1 (not this AAR)
    implementation(platform("androidx.compose:compose-bom:2025.09.00"))
    implementation("androidx.compose.material3:material3")
    implementation("androidx.activity:activity-compose:1.11.0")
}
